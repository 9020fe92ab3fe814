//! One scheduler and two executors as processes on loopback: the same answers as in this process, also when an executor dies.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::array::FixedSizeListArray;
use datafusion::arrow::array::make_comparator;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Schema};
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use half::f16;
use orthant::sql::cluster::connect;
use orthant::sql::{self, SqlMixtureOptions, fit_mixture};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use orthant::{Device, Error};

/// No step of these tests may take longer.
const BOUND: Duration = Duration::from_secs(120);
/// Of an executor that is not heard of; heartbeats come every second.
const LOST: u64 = 5;

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    address: String,
    executors: Vec<Process>,
    _scheduler: Process,
    _folder: tempfile::TempDir,
}

/// A port that nobody had a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(program: &str, args: &[&str], log: &Path) -> Process {
    let log = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(args).env("ORTHANT_DEVICE", "cpu").env("RUST_LOG", "warn");
    Process(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

fn wait_for(address: &str) {
    let start = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(start.elapsed() < BOUND, "nothing listens at {address}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", port());
        let args = ["--bind", &address, "--executor-timeout", &LOST.to_string()];
        let scheduler = spawn(env!("CARGO_BIN_EXE_orthant-scheduler"), &args, &folder.path().join("scheduler"));
        wait_for(&address);
        let executor = |number: usize| {
            let (ports, work) =
                ([port(), port()].map(|port| port.to_string()), folder.path().join(format!("work{number}")));
            std::fs::create_dir(&work).unwrap();
            let work = work.to_str().unwrap();
            let args = ["--scheduler", &address, "--port", &ports[0], "--grpc-port", &ports[1], "--tasks", "2"];
            let args = [&args[..], &["--heartbeat", "1", "--work-dir", work]].concat();
            let log = folder.path().join(format!("executor{number}"));
            let executor = spawn(env!("CARGO_BIN_EXE_orthant-executor"), &args, &log);
            wait_for(&format!("127.0.0.1:{}", ports[0]));
            wait_for(&format!("127.0.0.1:{}", ports[1]));
            executor
        };
        let executors = (0..2).map(executor).collect();
        // they are known when they have said so
        std::thread::sleep(Duration::from_secs(2));
        Self { address, executors, _scheduler: scheduler, _folder: folder }
    }

    /// As `kill -9`.
    fn kill(&mut self) {
        drop(self.executors.pop().unwrap());
    }
}

/// Runs `future`, which must not take longer than [`BOUND`].
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(BOUND, future).await.expect("it ends in bounded time") })
}

fn npy<T: npyz::Deserialize>(name: &str) -> Vec<T> {
    let file = npyz::NpyFile::new(std::fs::File::open(data(name)).unwrap()).unwrap();
    file.into_vec().unwrap()
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// WordNet's rows in four Parquet files: id, label, embedding.
fn write_wordnet(folder: &Path) {
    let rows: Vec<f32> = npy::<f16>("wordnet_minilm_4k.npy").iter().map(|value| value.to_f32()).collect();
    let labels: Vec<i32> = npy("wordnet_labels_4k.npy");
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let list = DataType::FixedSizeList(item.clone(), 384);
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("label", DataType::Int32, false),
        Field::new("embedding", list, false),
    ];
    let schema = Arc::new(Schema::new(fields));
    for part in 0..4 {
        let range = 1000 * part..1000 * (part + 1);
        let elements = Arc::new(Float32Array::from(rows[384 * range.start..384 * range.end].to_vec()));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(range.clone().map(|id| id as i64))),
            Arc::new(Int32Array::from(labels[range].to_vec())),
            Arc::new(FixedSizeListArray::new(item.clone(), 384, elements, None)),
        ];
        write(&folder.join(format!("part{part}.parquet")), &RecordBatch::try_new(schema.clone(), columns).unwrap());
    }
}

fn write(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// Orders and arguments in eight Parquet files of `rows` rows.
fn write_points(folder: &Path, rows: usize) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("g", DataType::Int64, false),
        Field::new("v", DataType::Float64, false),
        Field::new("x", DataType::Float64, false),
    ]));
    for part in 0..8 {
        let number = |row: usize| (row * 2_654_435_761 + part * 40_503) % 1_000_003;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values((0..rows).map(|row| (row % 10) as i64))),
            Arc::new(Float64Array::from_iter_values((0..rows).map(|row| number(row) as f64 / 1e5))),
            Arc::new(Float64Array::from_iter_values((0..rows).map(|row| 0.1 + number(row + 1) as f64 / 1e5))),
        ];
        write(&folder.join(format!("part{part}.parquet")), &RecordBatch::try_new(schema.clone(), columns).unwrap());
    }
}

async fn embedded() -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3));
    sql::register(&ctx, Device::Cpu);
    ctx
}

async fn tables(ctx: &SessionContext, folder: &Path) {
    let parquet = ParquetReadOptions::default;
    ctx.register_parquet("notes", folder.join("notes").to_str().unwrap(), parquet()).await.unwrap();
    ctx.register_parquet("points", folder.join("points").to_str().unwrap(), parquet()).await.unwrap();
    sql::register_file(ctx, "speakers", data("speakers_ge2e.npy")).await.unwrap();
}

async fn query(ctx: &SessionContext, text: &str) -> datafusion::error::Result<RecordBatch> {
    let batches = ctx.sql(text).await?.collect().await?;
    let schema = batches.first().expect("a batch").schema();
    Ok(concat_batches(&schema, &batches)?)
}

/// Equal, but sums to 1e-12 of themselves, as their order may differ.
#[track_caller]
fn same(got: &dyn Array, expected: &dyn Array, what: &str) {
    assert_eq!(got.data_type(), expected.data_type(), "{what}");
    assert_eq!((got.len(), got.null_count()), (expected.len(), expected.null_count()), "{what}");
    match got.data_type() {
        DataType::Float64 => {
            let (got, expected) = (got.as_primitive::<Float64Type>(), expected.as_primitive::<Float64Type>());
            for (row, (got, expected)) in got.values().iter().zip(expected.values()).enumerate() {
                let off = (got - expected).abs();
                assert!(
                    off <= 1e-12 * expected.abs().max(0.05) || got == expected,
                    "{what}, {row}: {got}, expected {expected}"
                );
            }
        }
        DataType::Struct(_) => {
            let (got, expected) = (got.as_struct(), expected.as_struct());
            got.columns().iter().zip(expected.columns()).for_each(|(got, expected)| same(got, expected, what));
        }
        DataType::List(_) => {
            let (got, expected) = (got.as_list::<i32>(), expected.as_list::<i32>());
            (0..got.len()).for_each(|row| same(&got.value(row), &expected.value(row), what));
        }
        _ => {
            let compare = make_comparator(got, expected, Default::default()).unwrap();
            (0..got.len()).for_each(|row| assert!(compare(row, row).is_eq(), "{what}, row {row}"));
        }
    }
}

/// A folder with the tables, made once a test.
fn folder(points: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["notes", "points"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    write_wordnet(&folder.path().join("notes"));
    write_points(&folder.path().join("points"), points);
    folder
}

#[test]
fn a_cluster_answers_as_this_process_does() {
    let (cluster, folder) = (Cluster::start(), folder(500));
    let (vmf, mixture) = (folder.path().join("vmf.json"), folder.path().join("mixture.json"));
    let rows: Vec<f32> = npy::<f16>("wordnet_minilm_4k.npy").iter().map(|value| value.to_f32()).collect();
    let rows = Device::Cpu.tensor_from(ndarray::Array2::from_shape_vec((4000, 384), rows).unwrap()).unwrap();
    Vmf::fit(&rows).unwrap().save(&vmf).unwrap();
    VmfMixture::fit(&rows, &MixtureOptions::new(4).max_iterations(3)).unwrap().save(&mixture).unwrap();
    let (vmf, mixture) = (vmf.display(), mixture.display());
    let other = "(SELECT embedding AS q FROM notes WHERE id = 77)";
    let queries = [
        "SELECT g, SUM(log_iv(v, x)), SUM(log_kv(v, x)) FROM points GROUP BY g ORDER BY g".to_string(),
        format!("SELECT id, vmf_log_density(embedding, '{vmf}') FROM notes ORDER BY id"),
        format!(
            "SELECT label, vmf_predict(embedding, '{mixture}') AS c, COUNT(*) FROM notes GROUP BY label, c ORDER BY label, c"
        ),
        "SELECT id, binarize(embedding, 'hyperplanes 64 3') FROM notes ORDER BY id".into(),
        "SELECT a.id, hamming_distance(binarize(a.embedding, 'sign'), binarize(b.embedding, 'sign')), \
         cosine_similarity(a.embedding, b.embedding) FROM notes a JOIN notes b ON a.id + 1 = b.id ORDER BY a.id"
            .into(),
        "SELECT vmf_fit(embedding), vmf_fit(embedding, label) FROM notes".into(),
        "SELECT label, vmf_fit(embedding) FROM notes GROUP BY label ORDER BY label".into(),
        // (Ballista 55 plans no subqueries as values: what is looked up is joined.)
        format!("SELECT knn_top_k(id, embedding, q, 20, 'cosine') FROM notes CROSS JOIN {other}"),
        format!(
            "SELECT hamming_top_k(id, binarize(embedding, 'sign'), binarize(q, 'sign'), 20) FROM notes CROSS JOIN {other}"
        ),
        "SELECT hamming_top_k(id, binarize(embedding, 'sign 64'), X'0123456789abcdef', 20) FROM notes".into(),
        format!("SELECT knn_top_k(id, embedding, {:?}, 20, 'l2') FROM notes", vec![0.05; 384]),
        "SELECT vmf_fit(embedding), SUM(row), COUNT(*) FROM speakers".into(),
    ];
    block_on(async {
        let (near, far) = (embedded().await, connect(&cluster.address).await.unwrap());
        tables(&near, folder.path()).await;
        tables(&far, folder.path()).await;
        for text in queries {
            let expected = query(&near, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
            let got = query(&far, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(expected.num_rows() > 0);
            got.columns().iter().zip(expected.columns()).for_each(|(got, expected)| same(got, expected, &text));
        }
        let options = SqlMixtureOptions::new(MixtureOptions::new(5).seed(2).max_iterations(6).tolerance(0.0));
        let text = "SELECT embedding FROM notes";
        let expected = fit_mixture(&near, text, &options).await.unwrap().mixture;
        let got = fit_mixture(&far, text, &options).await.unwrap().mixture;
        for (got, expected) in got.components().iter().zip(expected.components()) {
            // f32 sums of other partitions
            assert!((got.kappa - expected.kappa).abs() < 1e-4 * expected.kappa, "{} {}", got.kappa, expected.kappa);
            assert!((got.weight - expected.weight).abs() < 1e-4);
        }
        // What is wrong on an executor is said here: Ballista passes on how the error prints for developers.
        let error = query(&far, "SELECT SUM(log_iv(v, -x)) FROM points").await.unwrap_err().to_string();
        let told = ["log_iv", "column: \"x\"", "row: Some(0)", "0, or 1e-15 to 1e9"];
        assert!(told.iter().all(|what| error.contains(what)), "{error}");
    });
    // The program, over the same files.
    let note = folder.path().join("notes/part2.parquet");
    let text =
        format!("SELECT label, vmf_fit(embedding) AS fit FROM '{}' GROUP BY label ORDER BY label", note.display());
    let answer = |more: &[&str]| -> serde_json::Value {
        let args = [&["sql", &text, "--json"], more].concat();
        let output =
            Command::new(env!("CARGO_BIN_EXE_orthant")).args(args).env("ORTHANT_DEVICE", "cpu").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (near, far) = (answer(&[]), answer(&["--cluster", &cluster.address]));
    assert_eq!(near["columns"], far["columns"]);
    assert_eq!(near["count"], far["count"]);
    let kappa = |answer: &serde_json::Value, row: usize| answer["rows"][row]["fit"]["kappa"].as_f64();
    for row in 0..near["count"].as_u64().unwrap() as usize {
        match (kappa(&near, row), kappa(&far, row)) {
            (Some(near), Some(far)) => assert!((near - far).abs() <= 1e-12 * near, "row {row}: {near} {far}"),
            (near, far) => assert_eq!(near, far),
        }
    }
}

#[test]
fn an_executor_that_dies_does_not_change_the_answer() {
    let (mut cluster, folder) = (Cluster::start(), folder(100_000));
    let text = "SELECT g, SUM(log_iv(v, x)), SUM(log_kv(v, x)), COUNT(*) FROM points GROUP BY g ORDER BY g";
    let address = cluster.address.clone();
    block_on(async {
        let near = embedded().await;
        tables(&near, folder.path()).await;
        let far = connect(&address).await.unwrap();
        tables(&far, folder.path()).await;
        let start = Instant::now();
        let expected = query(&far, text).await.unwrap();
        let whole = start.elapsed();
        let running = tokio::spawn(async move { query(&far, text).await });
        tokio::time::sleep(whole / 3).await;
        assert!(!running.is_finished());
        cluster.kill();
        let got = running.await.unwrap().expect("the engine runs lost tasks again");
        got.columns().iter().zip(expected.columns()).for_each(|(got, expected)| same(got, expected, text));
        let expected = query(&near, text).await.unwrap();
        got.columns().iter().zip(expected.columns()).for_each(|(got, expected)| same(got, expected, text));
    });
}

#[test]
fn a_fit_goes_on_when_an_executor_dies_and_fails_when_all_do() {
    let (cluster, folder) = (std::sync::Mutex::new(Cluster::start()), folder(500));
    let cluster = Arc::new(cluster);
    let iterations = Arc::new(AtomicUsize::new(0));
    let address = cluster.lock().unwrap().address.clone();
    let checkpoint = folder.path().join("checkpoint.json");
    let fit = |kill_at: usize, resume: bool| {
        let (cluster, iterations) = (cluster.clone(), iterations.clone());
        iterations.store(0, Ordering::SeqCst);
        let mixture = MixtureOptions::new(3).seed(5).max_iterations(6).tolerance(0.0).progress(move |_, _| {
            if iterations.fetch_add(1, Ordering::SeqCst) + 1 == kill_at {
                cluster.lock().unwrap().kill();
            }
        });
        SqlMixtureOptions::new(mixture).checkpoint(&checkpoint).resume(resume)
    };
    block_on(async {
        let far = connect(&address).await.unwrap();
        tables(&far, folder.path()).await;
        let near = embedded().await;
        tables(&near, folder.path()).await;
        let text = "SELECT embedding FROM notes";
        let expected = fit_mixture(&near, text, &fit(0, false)).await.unwrap().mixture;
        let got = fit_mixture(&far, text, &fit(2, false)).await.unwrap().mixture;
        for (got, expected) in got.components().iter().zip(expected.components()) {
            assert!((got.kappa - expected.kappa).abs() < 1e-4 * expected.kappa, "{} {}", got.kappa, expected.kappa);
        }
        std::fs::remove_file(&checkpoint).unwrap();
        let error = fit_mixture(&far, text, &fit(3, false)).await.unwrap_err();
        println!("all executors gone: {error}");
        // What was done is not lost: this process goes on where the cluster stopped.
        let saved = VmfMixture::load(&checkpoint).unwrap();
        assert_eq!(saved.iterations(), 3);
        let rest = fit_mixture(&near, text, &fit(0, true)).await.unwrap().mixture;
        assert_eq!(rest.iterations(), 6);
        for (got, expected) in rest.components().iter().zip(expected.components()) {
            assert!((got.kappa - expected.kappa).abs() < 1e-4 * expected.kappa, "{} {}", got.kappa, expected.kappa);
        }
    });
}

#[test]
fn a_cluster_that_is_not_there_is_an_error() {
    let address = format!("127.0.0.1:{}", port());
    let start = Instant::now();
    let error = block_on(connect(&address)).err().expect("nothing listens there");
    let DataFusionError::External(inner) = error.find_root() else { panic!("{error}") };
    assert!(matches!(inner.downcast_ref(), Some(Error::Io { what, .. }) if what.contains(&address)), "{inner}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let mut command = Command::new(env!("CARGO_BIN_EXE_orthant"));
    let output = command.args(["sql", "SELECT 1", "--cluster", &address]).output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && complaint.contains(&address) && complaint.lines().count() == 1,
        "{complaint}"
    );
}

#[test]
fn the_program_says_what_is_wrong_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.parquet");
    std::fs::write(&broken, b"no parquet at all, but long enough to look at").unwrap();
    let (broken, rows) = (broken.display().to_string(), data("speakers_ge2e.npy").display().to_string());
    let wrong = [
        (format!("SELECT vmf_fit(embedding) FROM '{broken}'"), "broken.parquet: Parquet error"),
        ("SELECT * FROM 'nowhere.npy'".to_string(), "nowhere.npy"),
        ("SELEKT 1".into(), "SELEKT"),
        (format!("SELECT vmf_fit(missing) FROM '{rows}'"), "missing"),
        (format!("SELECT vmf_predict(embedding, 'none.json') FROM '{rows}'"), "none.json"),
        (
            format!("SELECT knn_top_k(row, embedding, [1.0, 2.0], 3, 'l2') FROM '{rows}'"),
            "256 elements, expected 2 as the query has",
        ),
        (format!("SELECT hamming_top_k(row, embedding, X'00', 3) FROM '{rows}'"), "a code of type"),
    ];
    for (text, expected) in wrong {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orthant"));
        let output = command.args(["sql", &text]).env("ORTHANT_DEVICE", "cpu").output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {complaint}");
        assert!(complaint.lines().count() == 1 && complaint.contains(expected), "{text}: {complaint}");
        assert!(output.stdout.is_empty(), "{text}: nothing is answered beside an error");
    }
}
