//! The command line tool, run as a user runs it: every command on good input, and one line for everything that can be wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "cli/hamming.rs"]
mod hamming;
#[path = "cli/kv.rs"]
mod kv;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn data(name: &str) -> String {
    format!("{DATA}/{name}")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orthant"));
    command.args(args).env("ORTHANT_DEVICE", "cpu");
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Runs it with `--json`, and returns the object on stdout.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["seconds"].as_f64().unwrap() > 0.0 && report["device"].is_string(), "{report}");
    report
}

/// A folder of its own for a test, and paths in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A .npy with that element type, shape and order, and those bytes.
    fn npy(&self, name: &str, descr: &str, fortran: bool, shape: &str, bytes: &[u8]) -> String {
        let order = if fortran { "True" } else { "False" };
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&(header.len() as u16).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(bytes);
        self.file(name, file)
    }

    /// Rows of `dim` elements as a little-endian float32 .npy.
    fn rows(&self, name: &str, dim: usize, elements: &[f32]) -> String {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.npy(name, "<f4", false, &format!("({}, {dim})", elements.len() / dim), &bytes)
    }

    fn list(&self) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

/// `n` rows about a direction, the same every time: enough of a shape for a fit.
fn some_rows(n: usize, dim: usize) -> Vec<f32> {
    let mut state = 12345u32;
    (0..n * dim)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            if i % dim == 0 { 1.0 + noise } else { noise }
        })
        .collect()
}

fn read_npy<T: npyz::Deserialize>(path: &str) -> (Vec<u64>, Vec<T>) {
    let file = npyz::NpyFile::new(fs::File::open(path).unwrap()).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}

#[test]
fn devices_are_listed() {
    let report = json(&["devices"]);
    let devices = report["devices"].as_array().unwrap();
    for device in devices {
        for key in ["name", "backend", "type", "driver", "features", "limits", "chosen", "reason"] {
            assert!(!device[key].is_null(), "{key} of {device}");
        }
        // What extended precision is made of there: something, on every adapter that these tests run on.
        assert!(device["type"] == "cpu" || device["extended"]["arithmetic"].is_string(), "{device}");
    }
    assert_eq!(devices.iter().filter(|device| device["chosen"] == true).count(), 1, "{report}");
    assert!(devices.iter().any(|device| device["type"] == "cpu"));
    let text = run(&["devices"]);
    assert!(text.status.success() && String::from_utf8_lossy(&text.stdout).contains("ORTHANT_DEVICE=cpu"));
}

/// The golden table itself is input: its columns v and x are taken, the others ignored.
#[test]
fn bessel_agrees_with_the_golden_table() {
    let folder = Folder::new();
    let out = folder.path("out.csv");
    for (function, column, dtype, eps) in [
        ("log_iv", 2, "f64", f64::EPSILON),
        ("log_kv", 3, "f64", f64::EPSILON),
        ("log_iv", 2, "f32", f64::from(f32::EPSILON)),
        // 1e-13 in all.
        ("log_kv", 3, "extended", 1e-15),
    ] {
        let report = json(&["bessel", function, &data("golden_bessel.csv"), "--dtype", dtype, "--out", &out]);
        assert_eq!((&report["function"], &report["dtype"]), (&Value::from(function), &Value::from(dtype)));
        let golden = fs::read_to_string(data("golden_bessel.csv")).unwrap();
        let found = fs::read_to_string(&out).unwrap();
        assert_eq!(found.lines().next(), Some("v,x,value"));
        assert_eq!(found.lines().count(), golden.lines().count());
        assert_eq!(report["rows"], golden.lines().count() - 1);
        for (golden, found) in golden.lines().zip(found.lines()).skip(1) {
            let golden: Vec<f64> = golden.split(',').map(|field| field.parse().unwrap()).collect();
            let found: Vec<f64> = found.split(',').map(|field| field.parse().unwrap()).collect();
            assert_eq!(golden[..2], found[..2]);
            let scale = golden[column].abs().max(golden[0].hypot(golden[1]));
            // The functions' own accuracy is tested elsewhere: this is 100 eps for a mix-up of rows or columns. In f32, v and x are
            // rounded first, which moves ln I by up to max(|d ln I/dv| v, |d ln I/dx| x) eps.
            let slope = golden[0] * (2.0 * golden[0].max(1.0) / golden[1]).ln().abs() + golden[1] + golden[0];
            let rounding = if dtype == "f32" { slope } else { 0.0 };
            let error = (found[2] - golden[column]).abs();
            assert!(error <= eps * (100.0 * scale + rounding), "{function} {dtype}: {golden:?} {found:?}");
        }
    }
}

/// Half orders have closed forms, in every function.
#[test]
fn bessel_knows_every_function() {
    let folder = Folder::new();
    let input = folder.file("in.csv", "note, x, v\nhalf, 2, 0.5\n");
    let out = folder.path("out.csv");
    let (x, pi) = (2.0_f64, std::f64::consts::PI);
    let ratio = 1.0 / x.tanh() - 1.0 / x;
    let log_iv = (2.0 / (pi * x)).sqrt().ln() + x.sinh().ln();
    for (function, expected) in [
        ("log_iv", log_iv),
        ("log_kv", (pi / (2.0 * x)).sqrt().ln() - x),
        ("ratio", ratio),
        ("ratio_complement", 1.0 - ratio),
        ("log_iv_dx", 0.5 / x + ratio),
        ("log_kv_dx", -1.0 - 0.5 / x),
        // mpmath at 50 digits.
        ("log_iv_dv", -0.370_110_164_393_551_94),
        ("log_kv_dv", 0.206_345_649_901_055_83),
        // d = 3: kappa / (4 pi sinh kappa).
        ("log_normalizer", (x / (4.0 * pi * x.sinh())).ln()),
    ] {
        json(&["bessel", function, &input, "--out", &out]);
        let text = fs::read_to_string(&out).unwrap();
        let value: f64 = text.lines().nth(1).unwrap().strip_prefix("0.5,2,").unwrap().parse().unwrap();
        // Some eps of values around 1.
        assert!((value - expected).abs() < 1e-14, "{function}: {value}, expected {expected}");
    }
}

/// The whole way: fit with labels, everything written, then score and sample from the model.
#[test]
fn speakers_are_told_apart() {
    let folder = Folder::new();
    let (model, assign, plot) = (folder.path("m.json"), folder.path("a.npy"), folder.path("p.svg"));
    let (rows, labels, names) =
        (data("speakers_ge2e.npy"), data("speakers_labels.npy"), data("speakers_label_names.json"));
    let fit = ["vmf", "fit", &rows, "--components", "7", "--starts", "3", "--seed", "1", "--labels", &labels];
    let write = ["--label-names", &names, "--model", &model, "--assign", &assign, "--plot", &plot];
    let report = json(&[&fit[..], &write[..]].concat());
    let components = report["components"].as_array().unwrap();
    assert_eq!(components.len(), 7);
    let sum = |key: &str| components.iter().map(|component| component[key].as_f64().unwrap()).sum::<f64>();
    assert!((sum("weight") - 1.0).abs() < 1e-6);
    assert_eq!(sum("size"), 1535.0);
    assert!(sum("kappa") > 0.0 && sum("kappa_relative_error") > 0.0 && sum("log_normalizer").is_finite());
    for key in ["log_likelihood", "aic", "bic", "iterations", "purity", "ari"] {
        assert!(report[key].is_number(), "{key} of {report}");
    }
    assert_eq!(report["converged"], true);
    // scikit-learn's k-means reaches 0.972: the speakers are far apart.
    assert!(report["nmi"].as_f64().unwrap() > 0.9, "{report}");

    let (shape, assigned) = read_npy::<u32>(&assign);
    assert_eq!(shape, [1535]);
    for (k, component) in components.iter().enumerate() {
        assert_eq!(assigned.iter().filter(|a| **a as usize == k).count() as u64, component["size"], "component {k}");
    }
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("fr-armelle") && svg.len() < 2_000_000);

    let (scores, drawn) = (folder.path("s.npy"), folder.path("x.npy"));
    let scored = json(&["vmf", "score", &rows, "--model", &model, "--out", &scores]);
    // Two ways to the same mean, in f32.
    let (mean, expected) = (scored["mean_log_density"].as_f64().unwrap(), report["log_likelihood"].as_f64().unwrap());
    assert!((mean - expected).abs() < 1e-4 * expected.abs(), "{mean}, expected {expected}");
    let (shape, values) = read_npy::<f32>(&scores);
    assert_eq!((shape, values.len()), (vec![1535], 1535));

    let sampled = json(&["vmf", "sample", "--model", &model, "-n", "500", "--seed", "3", "--out", &drawn]);
    assert_eq!((&sampled["rows"], &sampled["dim"]), (&Value::from(500), &Value::from(256)));
    let (shape, values) = read_npy::<f32>(&drawn);
    assert_eq!(shape, [500, 256]);
    for row in values.chunks(256) {
        let length: f32 = row.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let again = folder.path("x2.npy");
    json(&["vmf", "sample", "--model", &model, "-n", "500", "--seed", "3", "--out", &again]);
    assert_eq!(fs::read(&drawn).unwrap(), fs::read(&again).unwrap(), "one seed, one sample");
}

/// One kappa, whatever the file is: every element type, order of axes, byte order and container.
#[test]
fn every_kind_of_file_is_read() {
    let folder = Folder::new();
    let rows = some_rows(300, 5);
    let f16: Vec<half::f16> = rows.iter().map(|x| half::f16::from_f32(*x)).collect();
    // What f16 holds, so that all files hold the same.
    let rows: Vec<f32> = f16.iter().map(|x| x.to_f32()).collect();
    let columns: Vec<f32> = (0..5).flat_map(|j| rows.iter().skip(j).step_by(5).copied()).collect();
    let little = |rows: &[f32]| rows.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let csv: String = rows
        .chunks(5)
        .map(|row| row.iter().map(|x| f64::from(*x).to_string()).collect::<Vec<_>>().join(",") + "\n")
        .collect();

    let header = r#"{"other":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[300,5],"data_offsets":[8,6008]}}"#;
    let mut safetensors = (header.len() as u64).to_le_bytes().to_vec();
    safetensors.extend_from_slice(header.as_bytes());
    safetensors.extend_from_slice(&[0; 8]);
    safetensors.extend_from_slice(&little(&rows));

    let mut npz = npyz::npz::NpzWriter::create(folder.path("x.npz")).unwrap();
    for name in ["x", "y"] {
        use npyz::WriterBuilder;
        let builder = npz.array::<f64>(name, Default::default()).unwrap();
        let mut writer = builder.default_dtype().shape(&[300, 5]).begin_nd().unwrap();
        writer.extend(rows.iter().map(|x| f64::from(*x))).unwrap();
        writer.finish().unwrap();
    }
    drop(npz);

    let files = [
        (folder.npy("f4.npy", "<f4", false, "(300, 5)", &little(&rows)), None),
        (folder.npy("fortran.npy", "<f4", true, "(300, 5)", &little(&columns)), None),
        (
            folder.npy(
                "big.npy",
                ">f4",
                false,
                "(300, 5)",
                &rows.iter().flat_map(|x| x.to_be_bytes()).collect::<Vec<u8>>(),
            ),
            None,
        ),
        (
            folder.npy(
                "f2.npy",
                "<f2",
                false,
                "(300, 5)",
                &f16.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
            ),
            None,
        ),
        (
            folder.npy(
                "f8.npy",
                "<f8",
                false,
                "(300, 5)",
                &rows.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect::<Vec<u8>>(),
            ),
            None,
        ),
        // Only the direction counts: far beyond what f32 holds.
        (
            folder.npy(
                "huge.npy",
                "<f8",
                false,
                "(300, 5)",
                &rows.iter().flat_map(|x| (f64::from(*x) * 2.0_f64.powi(700)).to_le_bytes()).collect::<Vec<u8>>(),
            ),
            None,
        ),
        (folder.file("x.csv", &csv), None),
        (folder.file("named.csv", format!("a,b,c,d,e\n{csv}")), None),
        (folder.file("x.safetensors", safetensors), Some("x")),
        (folder.path("x.npz"), Some("y")),
    ];
    let fit = |file: &str, array: Option<&str>, more: &[&str]| {
        let array: Vec<&str> = array.iter().flat_map(|name| ["--array", *name]).collect();
        let report = json(&[&["vmf", "fit", file], &array[..], more].concat());
        (report["components"][0]["kappa"].as_f64().unwrap(), report["log_likelihood"].as_f64().unwrap())
    };
    let (kappa, log_likelihood) = fit(&files[0].0, None, &[]);
    assert!(kappa > 1.0, "{kappa}");
    let (_, mixed) = fit(&files[0].0, None, &["--components", "2"]);
    for (file, array) in &files {
        let (k, l) = fit(file, *array, &[]);
        // The same numbers, summed in f64.
        assert!(
            (k / kappa - 1.0).abs() < 1e-12 && (l - log_likelihood).abs() < 1e-12,
            "{file}: kappa {k}, expected {kappa}"
        );
        let (_, m) = fit(file, *array, &["--components", "2"]);
        // The same rows to the last digit; sums of f32 may come in another order.
        assert!((m - mixed).abs() < 1e-4, "{file}: log-likelihood {m}, expected {mixed}");
    }
}

/// Reading the file in every iteration gives what holding it gives; and both centre alike.
#[test]
fn streaming_and_centring() {
    let rows = data("speakers_ge2e.npy");
    let base = ["vmf", "fit", &rows, "--components", "7", "--seed", "5"];
    let value = |more: &[&str], key: &str| json(&[&base[..], more].concat())[key].as_f64().unwrap();
    for more in [&[][..], &["--center"][..]] {
        let held = value(more, "log_likelihood");
        let streamed = value(&[more, &["--stream"]].concat(), "log_likelihood");
        // Other seeds may be drawn from other samples: the same optimum to a few parts in a thousand.
        assert!((held / streamed - 1.0).abs() < 5e-3, "{more:?}: {held} and {streamed}");
    }

    // A model remembers the mean: scores of the same rows average to the log-likelihood of the fit.
    let folder = Folder::new();
    let (model, scores) = (folder.path("m.json"), folder.path("s.npy"));
    let fit = json(&["vmf", "fit", &rows, "--center", "--model", &model]);
    let score = json(&["vmf", "score", &rows, "--model", &model, "--out", &scores]);
    let (fitted, scored) = (fit["log_likelihood"].as_f64().unwrap(), score["mean_log_density"].as_f64().unwrap());
    assert!((fitted - scored).abs() < 1e-6 * fitted.abs(), "{fitted} and {scored}");
    // Centred rows have hardly a direction in common.
    let raw = json(&["vmf", "fit", &rows])["components"][0]["kappa"].as_f64().unwrap();
    assert!(fit["components"][0]["kappa"].as_f64().unwrap() < 0.3 * raw);
}

/// A weight of 2 is a row twice, of 0 none.
#[test]
fn weights_count_rows() {
    let folder = Folder::new();
    let rows = some_rows(60, 4);
    let once = folder.rows("once.npy", 4, &rows);
    let expanded: Vec<f32> = rows.chunks(4).enumerate().flat_map(|(i, row)| row.repeat(i % 3)).collect();
    let expanded = folder.rows("expanded.npy", 4, &expanded);
    let weights: Vec<u8> = (0..60).flat_map(|i| f64::from(i % 3).to_le_bytes()).collect();
    let weights = folder.npy("w.npy", "<f8", false, "(60,)", &weights);
    let kappa = |args: &[&str]| json(&[&["vmf", "fit"], args].concat())["components"][0]["kappa"].as_f64().unwrap();
    let (weighted, expected) = (kappa(&[&once, "--weights", &weights]), kappa(&[&expanded]));
    // The same sum in another order, in f64.
    assert!((weighted / expected - 1.0).abs() < 1e-12, "{weighted}, expected {expected}");
}

#[test]
fn people_get_a_summary() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 4, &some_rows(50, 4));
    let output = run(&["vmf", "fit", &rows, "--components", "2", "--hard", "--tied-kappa", "--max-kappa", "50"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    for word in ["50 rows of 4", "log-likelihood", "kappa", "iterations"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for help in [&["--help"][..], &["vmf", "fit", "--help"], &["--version"]] {
        let output = run(help);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{help:?}");
    }
}

/// A reader that goes away is no reason to panic.
#[test]
fn a_broken_pipe_is_quiet() {
    let rows = data("speakers_ge2e.npy");
    let mut child = command(&["vmf", "fit", &rows]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One line on stderr that has all of `words`, exit code 2, nothing on stdout, no file more or less.
#[track_caller]
fn complains(folder: &Folder, args: &[&str], words: &[&str]) {
    complains_of(folder, &mut command(args), words);
}

#[track_caller]
fn complains_of(folder: &Folder, args: &mut Command, words: &[&str]) {
    let before: Vec<(PathBuf, Vec<u8>)> = contents(folder);
    let output = args.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("orthant: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
    }
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(contents(folder), before, "{args:?} left something behind");
}

fn contents(folder: &Folder) -> Vec<(PathBuf, Vec<u8>)> {
    folder
        .list()
        .into_iter()
        .map(|path| (path.clone(), if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() }))
        .collect()
}

#[test]
fn files_that_cannot_be_rows() {
    let folder = Folder::new();
    let out = folder.path("p.svg");
    let fit = |path: &str, words: &[&str]| {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        complains(&folder, &["vmf", "fit", path, "--components", "3", "--plot", &out], &[&[name][..], words].concat());
    };
    fit(&folder.path("missing.npy"), &["no such file"]);
    fit(&folder.file("rows.txt", "1 2 3"), &[".npy, .npz, .safetensors or .csv"]);
    fit(folder.0.path().join("").to_str().unwrap(), &[".npy"]);
    fit(&folder.file("not.npy", "hello"), &["not a .npy file"]);
    fit(&folder.file("empty.npy", ""), &["not a .npy file"]);
    fit(&folder.file("not.npz", "hello"), &["not a readable .npz file"]);
    fit(&folder.file("not.safetensors", "hello"), &["not a .safetensors file"]);

    let rows = some_rows(40, 6);
    let whole = fs::read(folder.rows("whole.npy", 6, &rows)).unwrap();
    fit(&folder.file("truncated.npy", &whole[..whole.len() - 1]), &["truncated", "(40, 6)", "960 bytes", "959"]);
    fit(&folder.file("header.npy", &whole[..50]), &["truncated in its header"]);
    fit(&folder.npy("int.npy", "<i8", false, "(40, 6)", &[0; 40 * 6 * 8]), &["int64", "float16, float32 or float64"]);
    fit(&folder.npy("bool.npy", "|b1", false, "(40, 6)", &[0; 40 * 6]), &["bool", "float32"]);
    fit(&folder.npy("flat.npy", "<f4", false, "(240,)", &[0; 960]), &["1 dimension", "(240,)"]);
    fit(&folder.npy("deep.npy", "<f4", false, "(4, 10, 6)", &[0; 960]), &["3 dimensions"]);
    fit(&folder.npy("thin.npy", "<f4", false, "(240, 1)", &[0; 960]), &["1 element", "at least 2"]);
    fit(&folder.npy("none.npy", "<f4", false, "(0, 6)", &[]), &["no rows"]);
    fit(&folder.npy("vast.npy", "<f4", false, "(4000000000, 2000000000)", &[]), &["truncated"]);
    fit(&folder.npy("over.npy", "<f4", false, "(4294967296, 4294967296)", &[]), &["2^64"]);
    fit(&folder.npy("hidden.npy", "<f4", false, "(0, 4294967296, 4294967296)", &[]), &["2^64"]);
    for (name, shape, words) in
        [("over.npz", "(4294967296, 4294967296)", "2^64"), ("large.npz", "(4294967296, 536870912)", "hold at most")]
    {
        use std::io::Write;
        let mut npz = npyz::npz::NpzWriter::create(folder.path(name)).unwrap();
        let inner = fs::read(folder.npy("inner.npy", "<f4", false, shape, &[])).unwrap();
        let zip = npz.zip_writer();
        zip.start_file("x.npy", Default::default()).unwrap();
        zip.write_all(&inner).unwrap();
        drop(npz);
        fit(&folder.path(name), &[words]);
    }
    fit(&folder.file("ragged.csv", "1,2,3\n4,5\n"), &["line 2", "2 values, expected 3"]);
    fit(&folder.file("words.csv", "1,2,3\n4,five,6\n"), &["line 2", "five"]);

    let mut hostile = rows.clone();
    hostile[17 * 6 + 2] = f32::NAN;
    fit(&folder.rows("nan.npy", 6, &hostile), &["row 17", "NaN"]);
    hostile[17 * 6 + 2] = f32::INFINITY;
    fit(&folder.rows("inf.npy", 6, &hostile), &["row 17", "inf"]);
    hostile[17 * 6..18 * 6].fill(0.0);
    fit(&folder.rows("zero.npy", 6, &hostile), &["row 17", "zero"]);
    fit(&folder.rows("few.npy", 6, &rows[..12]), &["2 rows", "--components 3"]);
    // One distribution meets the same rows in another way.
    for name in ["nan.npy", "zero.npy"] {
        complains(&folder, &["vmf", "fit", &folder.path(name)], &[name, "row 17"]);
        complains(&folder, &["vmf", "fit", &folder.path(name), "--components", "2", "--stream"], &[name, "row 17"]);
    }
}

#[test]
fn options_that_make_no_sense() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 6, &some_rows(40, 6));
    let check = |args: &[&str], words: &[&str]| complains(&folder, args, words);
    check(&[], &["devices, bessel, vmf", "attention"]);
    check(&["vmf"], &["vmf fit|score|sample"]);
    check(&["frobnicate"], &["frobnicate"]);
    check(&["vmf", "fit", &rows, "--frobnicate"], &["--frobnicate"]);
    check(&["vmf", "fit"], &["required", "ROWS"]);
    check(&["vmf", "fit", &rows, "--components", "0"], &["--components", "from 1 up"]);
    check(&["vmf", "fit", &rows, "--components", "-3"], &["-3"]);
    check(&["vmf", "fit", &rows, "--components", "3", "--tolerance", "nan"], &["--tolerance"]);
    check(&["vmf", "fit", &rows, "--components", "3", "--max-kappa", "0"], &["--max-kappa"]);
    check(&["vmf", "fit", &rows, "--components", "3", "--max-kappa", "1e300"], &["max_kappa"]);
    check(&["vmf", "fit", &rows, "--hard"], &["--components"]);
    check(&["vmf", "fit", &rows, "--device", "toaster"], &["toaster", "auto, cpu, gpu"]);
    check(&["vmf", "fit", &rows, "--array", "x"], &["x.npy", "--array"]);
    let model = folder.path("model.json");
    json(&["vmf", "fit", &rows, "--model", &model]);
    let out = folder.path("out.npy");
    for args in [
        &["vmf", "fit", &rows, "--components", "2"][..],
        &["vmf", "fit", &rows, "--assign", &out],
        &["vmf", "score", &rows, "--model", &model, "--out", &out],
        &["vmf", "sample", "--model", &model, "-n", "3", "--out", &out],
    ] {
        complains_of(&folder, command(args).env("ORTHANT_DEVICE", "toaster"), &["ORTHANT_DEVICE", "toaster"]);
    }

    // The unwritable is found before the fit, and with good outputs beside it nothing is written.
    for (bad, why) in [
        (folder.path("no/such/folder.svg"), "no such file or directory"),
        (folder.0.path().to_str().unwrap().to_string(), "is a directory"),
    ] {
        let good = folder.path("m.json");
        check(&["vmf", "fit", &rows, "--model", &good, "--plot", &bad], &["cannot be written", why]);
    }
    let twice = folder.path("twice");
    check(&["vmf", "fit", &rows, "--model", &twice, "--plot", &twice], &["two outputs"]);

    let labels = |n: usize| (0..n).flat_map(|i| (i as i32 % 3).to_le_bytes()).collect::<Vec<u8>>();
    let short = folder.npy("short.npy", "<i4", false, "(39,)", &labels(39));
    check(&["vmf", "fit", &rows, "--labels", &short], &["short.npy", "39 labels, expected 40"]);
    let square = folder.npy("square.npy", "<i4", false, "(20, 2)", &labels(40));
    check(&["vmf", "fit", &rows, "--labels", &square], &["square.npy", "(20, 2)"]);
    let good = folder.npy("labels.npy", "<i4", false, "(40,)", &labels(40));
    let half = folder.npy("half.npy", "<f8", false, "(40,)", &[0.5f64; 40].map(f64::to_le_bytes).concat());
    check(&["vmf", "fit", &rows, "--labels", &half], &["half.npy", "label 0 is 0.5"]);
    let names = folder.file("names.json", r#"["a", "b"]"#);
    check(&["vmf", "fit", &rows, "--labels", &good, "--label-names", &names], &["names.json", "label 2 has no name"]);
    let names = folder.file("broken.json", "[");
    check(&["vmf", "fit", &rows, "--labels", &good, "--label-names", &names], &["broken.json", "not JSON"]);
    let each =
        folder.npy("each.npy", "<i4", false, "(4100,)", &(0..4100i32).flat_map(i32::to_le_bytes).collect::<Vec<_>>());
    let tall = folder.rows("tall.npy", 2, &some_rows(4100, 2));
    let args = ["vmf", "fit", &tall, "--labels", &each, "--components", "4100"];
    check(&args, &["each.npy", "4100 different labels", "at most 4092"]);
    check(&["vmf", "fit", &rows, "--weights", &short], &["39 weights, expected 40"]);
    let negative = folder.npy("negative.npy", "<f8", false, "(40,)", &[-0.5f64; 40].map(f64::to_le_bytes).concat());
    check(&["vmf", "fit", &rows, "--weights", &negative], &["weight 0 is -0.5"]);
}

#[test]
fn models_and_tables_that_do_not_fit() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 6, &some_rows(40, 6));
    let (model, out) = (folder.path("m.json"), folder.path("out.npy"));
    json(&["vmf", "fit", &rows, "--model", &model]);
    let check = |args: &[&str], words: &[&str]| complains(&folder, args, words);
    let other = folder.rows("other.npy", 4, &some_rows(10, 4));
    check(&["vmf", "score", &other, "--model", &model, "--out", &out], &["other.npy", "4 elements", "m.json has 6"]);
    check(
        &["vmf", "score", &rows, "--model", &folder.path("none.json"), "--out", &out],
        &["none.json", "no such file"],
    );
    let text = fs::read_to_string(&model).unwrap();
    for (name, content) in [("cut.json", &text[..text.len() / 2]), ("list.json", "[1]"), ("else.json", r#"{"a": 1}"#)] {
        let bad = folder.file(name, content);
        check(&["vmf", "sample", "--model", &bad, "-n", "3", "--out", &out], &[name, "not a model"]);
    }
    for (name, bad, word) in [
        ("n.json", text.replacen("\"n\":", "\"n\":-", 1), "n is not"),
        ("r.json", text.replacen("\"resultant_length\":0", "\"resultant_length\":7", 1), "resultant_length"),
        ("center.json", text.replacen('{', "{\"center\":[0,0,0,0,0,1.5],", 1), "center"),
    ] {
        assert_ne!(bad, text);
        let bad = folder.file(name, bad);
        check(&["vmf", "sample", "--model", &bad, "-n", "3", "--out", &out], &[name, "not a model", word]);
    }
    check(&["vmf", "sample", "--model", &model, "-n", "0", "--out", &out], &["from 1 up"]);
    check(&["vmf", "sample", "--model", &model, "-n", "1000000000000000", "--out", &out], &["free memory"]);
    let mut hostile = some_rows(40, 6);
    hostile[17 * 6] = f32::NAN;
    let hostile = folder.rows("nan.npy", 6, &hostile);
    check(&["vmf", "score", &hostile, "--model", &model, "--out", &out], &["nan.npy", "row 17"]);

    let out = folder.path("out.csv");
    let table = |name: &str, content: &str, words: &[&str]| {
        let path = folder.file(name, content);
        complains(&folder, &["bessel", "log_iv", &path, "--out", &out], &[&[name][..], words].concat());
    };
    table("header.csv", "order,x\n1,2\n", &["no column v"]);
    table("word.csv", "v,x\n1,2\n1,two\n", &["line 3", "two"]);
    table("short.csv", "v,x\n1,2\n1\n", &["line: 3"]);
    table("negative.csv", "v,x\n1,2\n1,-2\n", &["line 3", "x = -2", "domain"]);
    table("nan.csv", "v,x\nNaN,2\n", &["line 2", "v = NaN"]);
    let tiny = folder.file("tiny.csv", "v,x\n0.5,0\n0.5,1e-50\n");
    for dtype in ["f32", "f64"] {
        let words = ["tiny.csv", "line 3", "x = 1e-50", "1e-15 to 1e9"];
        complains(&folder, &["bessel", "log_iv", &tiny, "--dtype", dtype, "--out", &out], &words);
    }
    complains(&folder, &["bessel", "log_iv", &folder.path("none.csv"), "--out", &out], &["none.csv", "no such file"]);
    let fine = folder.file("fine.csv", "v,x\n1,2\n");
    complains(&folder, &["bessel", "log_jv", &fine, "--out", &out], &["log_jv", "log_iv"]);
    complains(&folder, &["bessel", "log_iv", &fine, "--dtype", "f16", "--out", &out], &["f16", "f32, f64"]);
    complains(&folder, &["bessel", "log_iv", &fine], &["--out"]);
}

/// A safetensors file of little-endian tensors: (name, dtype, shape, bytes).
fn safetensors(folder: &Folder, name: &str, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> String {
    let mut header = serde_json::Map::new();
    let mut body = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let first = body.len();
        body.extend_from_slice(bytes);
        header.insert(
            (*name).into(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [first, body.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    folder.file(name, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat())
}

fn floats(path: &str) -> (Vec<u64>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}

/// The real activations, in f32 and f16, with masks; the same by hand where that is easy.
#[test]
fn attention_of_a_file() {
    let folder = Folder::new();
    let (out, lse) = (folder.path("o.npy"), folder.path("lse.npy"));
    let real = data("smollm2_layer08_512.safetensors");
    let names = ["--q", "q_post_last64", "--k", "k_post", "--v", "v"];
    let run_real = |more: &[&str]| json(&[&["attention", &real, "--out", &out][..], &names, more].concat());
    let report = run_real(&["--causal", "--dtype", "f32", "--lse", &lse]);
    assert_eq!(report["q"], serde_json::json!([9, 64, 64]), "{report}");
    assert_eq!((report["dtype"].as_str(), report["k"][1].as_u64()), (Some("f32"), Some(512)), "{report}");
    let (shape, causal) = floats(&out);
    assert_eq!(shape, [9, 64, 64]);
    assert_eq!(floats(&lse).0, [9, 64]);
    // The last query sees every key in either case; others do not.
    run_real(&["--dtype", "f32"]);
    let plain = floats(&out).1;
    assert_eq!(plain[63 * 64..64 * 64], causal[63 * 64..64 * 64]);
    assert_ne!(plain[..64], causal[..64]);
    // f16 is what the file has.
    assert_eq!(run_real(&["--causal"])["dtype"], "f16");
    let half: Vec<half::f16> = npyz::NpyFile::new(&fs::read(&out).unwrap()[..]).unwrap().into_vec().unwrap();
    // Two roundings to f16 of values below 1.
    assert!(half.iter().zip(&causal).all(|(half, single)| (half.to_f32() - single).abs() < 2e-3));

    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let small = safetensors(
        &folder,
        "small.safetensors",
        &[
            ("q", "F32", &[1, 2, 1], bytes(&[0.0, 1.0])),
            ("k", "F32", &[1, 2, 1], bytes(&[0.0, 1.0])),
            ("v", "F32", &[1, 2, 1], bytes(&[2.0, 4.0])),
            ("sinks", "F32", &[1], bytes(&[0.0])),
        ],
    );
    let run_small = |more: &[&str]| {
        json(&[&["attention", &small, "--q", "q", "--k", "k", "--v", "v", "--out", &out][..], more].concat());
        floats(&out).1
    };
    let e = 1f32.exp();
    for (more, expected) in [
        (&[][..], [3.0, (2.0 + 4.0 * e) / (1.0 + e)]),
        (&["--causal"], [2.0, (2.0 + 4.0 * e) / (1.0 + e)]),
        (&["--window", "1"], [2.0, 4.0]),
        (&["--scale", "0"], [3.0, 3.0]),
        (&["--sinks", "sinks"], [2.0, (2.0 + 4.0 * e) / (2.0 + e)]),
        // One head's slope is 2^-8.
        (
            &["--alibi", "--scale", "0", "--causal"],
            [2.0, (2.0 * (-1f32 / 256.0).exp() + 4.0) / (1.0 + (-1f32 / 256.0).exp())],
        ),
        (&["--softcap", "0.5"], [3.0, (2.0 + 4.0 * (0.5 * 2f32.tanh()).exp()) / (1.0 + (0.5 * 2f32.tanh()).exp())]),
    ] {
        let actual = run_small(more);
        assert!(actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{more:?}: {actual:?}, {expected:?}");
    }
}

#[test]
fn attention_of_what_does_not_fit() {
    let folder = Folder::new();
    let real = data("smollm2_layer08_512.safetensors");
    let out = folder.path("o.npy");
    let names = ["--q", "q_post_last64", "--k", "k_post", "--v", "v", "--out", &out];
    let check = |more: &[&str], words: &[&str]| {
        complains(&folder, &[&["attention", &real][..], &names, more].concat(), words);
    };
    check(&["--window", "0"], &["window is 0"]);
    check(&["--softcap", "-1"], &["softcap"]);
    check(&["--scale", "nan"], &["scale is NaN"]);
    check(&["--dtype", "f64"], &["f64", "f16, f32"]);
    check(&["--lse", &out], &["two outputs"]);
    check(&["--sinks", "v"], &["expected (9,)"]);
    let of = |q: &str, k: &str, v: &str, words: &[&str]| {
        complains(&folder, &["attention", &real, "--q", q, "--k", k, "--v", v, "--out", &out], words);
    };
    of("none", "k_post", "v", &["no array is called \"none\"", "k_post"]);
    of("k_post", "q_post_last64", "q_post_last64", &["heads"]);
    of("q_post_last64", "k_post", "q_post_last64", &["v has shape"]);
    complains(&folder, &["attention", &real, "--q", "v", "--k", "v", "--out", &out], &["--v"]);
    let missing = folder.path("none.safetensors");
    complains(&folder, &[&["attention", &missing][..], &names].concat(), &["none.safetensors", "no such file"]);
    let fifteen = (0..15u8).collect::<Vec<u8>>();
    let odd = safetensors(
        &folder,
        "odd.safetensors",
        &[
            ("flat", "F32", &[2, 1], vec![0; 8]),
            ("whole", "I32", &[1, 2, 1], vec![0; 8]),
            ("nan", "F32", &[1, 2, 1], [0f32, f32::NAN].map(f32::to_le_bytes).concat()),
            ("fine", "F32", &[1, 2, 1], vec![0; 8]),
        ],
    );
    let odd = |q: &str, k: &str, v: &str, words: &[&str]| {
        complains(&folder, &["attention", &odd, "--q", q, "--k", k, "--v", v, "--out", &out], words);
    };
    odd("flat", "fine", "fine", &["flat has shape (2, 1)"]);
    odd("fine", "whole", "fine", &["the elements of whole are"]);
    odd("nan", "fine", "fine", &["q at index 1 is NaN"]);
    odd("fine", "fine", "nan", &["v at index 1 is NaN"]);
    let cut = folder.file("cut.safetensors", fifteen);
    complains(&folder, &[&["attention", &cut][..], &names].concat(), &["cut.safetensors"]);
}

/// Bad input is found before a device is opened, so that no driver adds a line.
#[test]
fn drivers_do_not_speak_first() {
    let folder = Folder::new();
    let mut hostile = some_rows(40, 6);
    hostile[17 * 6] = f32::NAN;
    let (rows, out) = (folder.rows("nan.npy", 6, &hostile), folder.path("out"));
    let model = folder.path("m.json");
    json(&["vmf", "fit", &folder.rows("x.npy", 6, &some_rows(40, 6)), "--model", &model]);
    let table = folder.file("bad.csv", "v,x\n1,2\n1,-2\n");
    for (args, word) in [
        (&["vmf", "fit", &rows][..], "row 17"),
        (&["vmf", "fit", &rows, "--components", "2"][..], "row 17"),
        (&["vmf", "fit", &rows, "--components", "2", "--stream"][..], "row 17"),
        (&["vmf", "score", &rows, "--model", &model, "--out", &out][..], "row 17"),
        (&["bessel", "log_iv", &table, "--out", &out][..], "line 3"),
    ] {
        complains_of(&folder, command(args).env_remove("ORTHANT_DEVICE"), &[word]);
    }
}

/// No command writes what it reads, whatever the file is called.
#[test]
fn inputs_are_never_overwritten() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 6, &some_rows(40, 6));
    let labels = folder.npy("y.npy", "<i4", false, "(40,)", &[0; 160]);
    let weights = folder.npy("w.npy", "<f8", false, "(40,)", &[1.0f64; 40].map(f64::to_le_bytes).concat());
    let names = folder.file("names.json", r#"["only"]"#);
    let (model, table) = (folder.path("m.json"), folder.file("in.csv", "v,x\n1,2\n"));
    json(&["vmf", "fit", &rows, "--model", &model]);
    let again = folder.path("./x.npy");
    let check = |args: &[&str]| {
        let file = Path::new(args[args.len() - 1]).file_name().unwrap().to_str().unwrap();
        complains(&folder, args, &[file, "is also an input"]);
    };
    for output in ["--assign", "--model", "--plot"] {
        check(&["vmf", "fit", &rows, output, &rows]);
        check(&["vmf", "fit", &rows, output, &again]);
        check(&["vmf", "fit", &rows, "--weights", &weights, output, &weights]);
        for read in [&labels, &names] {
            check(&["vmf", "fit", &rows, "--labels", &labels, "--label-names", &names, output, read]);
        }
    }
    check(&["vmf", "score", &rows, "--model", &model, "--out", &rows]);
    check(&["vmf", "score", &rows, "--model", &model, "--out", &model]);
    check(&["vmf", "sample", "--model", &model, "-n", "3", "--out", &model]);
    check(&["bessel", "log_iv", &table, "--out", &table]);
    let absent = (folder.path("new"), folder.path("./new"));
    complains(&folder, &["vmf", "fit", &rows, "--model", &absent.0, "--plot", &absent.1], &["two outputs"]);
    #[cfg(unix)]
    {
        let (link, hard) = (folder.path("link.npy"), folder.path("hard.npy"));
        std::os::unix::fs::symlink(&rows, &link).unwrap();
        fs::hard_link(&rows, &hard).unwrap();
        check(&["vmf", "fit", &rows, "--assign", &link]);
        check(&["vmf", "fit", &rows, "--assign", &hard]);
    }
}

/// `--device gpu` where there is none is one line too; where there is one, it fits.
#[test]
fn a_gpu_or_one_line() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 6, &some_rows(40, 6));
    let (model, out) = (folder.path("m.json"), folder.path("out.npy"));
    json(&["vmf", "fit", &rows, "--model", &model]);
    for (args, on_cpu) in [
        (&["vmf", "fit", &rows, "--components", "2"][..], false),
        (&["vmf", "fit", &rows][..], false),
        (&["vmf", "score", &rows, "--model", &model, "--out", &out][..], false),
        (&["vmf", "sample", "--model", &model, "-n", "3", "--out", &out][..], true),
    ] {
        let output = run(&[args, &["--device", "gpu", "--json"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["device"].as_str().unwrap().starts_with("CPU"), on_cpu, "{report}");
            assert_eq!(stderr.contains("on the CPU, not on"), on_cpu, "{stderr}");
        } else {
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
            assert!(stderr.contains("no GPU"), "{stderr}");
        }
    }
}

/// A link stays a link, a device a device, and what is read-only stays as it is.
#[cfg(unix)]
#[test]
fn outputs_go_where_they_point() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 6, &some_rows(40, 6));
    let (place, link) = (folder.file("place.json", "old"), folder.path("link.json"));
    std::os::unix::fs::symlink(&place, &link).unwrap();
    json(&["vmf", "fit", &rows, "--model", &link, "--plot", "/dev/null"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && fs::read_to_string(&place).unwrap().contains("kappa"));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    assert_eq!(folder.list().len(), 3, "{:?}", folder.list());

    let mut permissions = fs::metadata(&place).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&place, permissions).unwrap();
    complains(&folder, &["vmf", "fit", &rows, "--model", &place], &["place.json", "read-only"]);
}
