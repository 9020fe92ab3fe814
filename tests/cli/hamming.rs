//! `orthant hamming` and `orthant knn`.

use super::*;

/// An .npy of u32 words.
fn words(folder: &Folder, name: &str, columns: usize, words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    folder.npy(name, "<u4", false, &format!("({}, {columns})", words.len() / columns), &bytes)
}

fn labels(folder: &Folder, name: &str, labels: &[i32]) -> String {
    let bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    folder.npy(name, "<i4", false, &format!("({},)", labels.len()), &bytes)
}

/// The whole way on real rows: codes, search, evaluation, picture.
#[test]
fn speakers_find_their_own() {
    let folder = Folder::new();
    let (rows, voices) = (data("speakers_ge2e.npy"), data("speakers_labels.npy"));
    let (codes, model) = (folder.path("c.npy"), folder.path("m.safetensors"));
    let report = json(&[
        "hamming", "binarize", &rows, "--bits", "64", "--method", "itq", "--seed", "1", "--model", &model, "--out",
        &codes,
    ]);
    assert_eq!((report["rows"].as_u64(), report["bits"].as_u64()), (Some(1535), Some(64)), "{report}");
    assert_eq!(read_npy::<u32>(&codes).0, [1535, 2]);
    let again = folder.path("again.npy");
    json(&["hamming", "binarize", &rows, "--with", &model, "--out", &again]);
    assert_eq!(fs::read(&codes).unwrap(), fs::read(&again).unwrap(), "a saved model makes the same codes");

    let (ids, distances) = (folder.path("i.npy"), folder.path("d.npy"));
    let search = ["hamming", "search", "--base", &codes, "--queries", &codes, "-k", "5", "--ids", &ids];
    let report = json(&[&search[..], &["--distances", &distances]].concat());
    assert_eq!((report["k"].as_u64(), report["base"].as_u64()), (Some(5), Some(1535)), "{report}");
    let (shape, found) = read_npy::<u32>(&ids);
    let (_, far) = read_npy::<u32>(&distances);
    assert_eq!(shape, [1535, 5]);
    let all = read_npy::<u32>(&codes).1;
    let distance = |a: usize, b: usize| (0..2).map(|w| (all[2 * a + w] ^ all[2 * b + w]).count_ones()).sum::<u32>();
    for query in [0, 700, 1534] {
        let mut order: Vec<(u32, u32)> = (0..1535).map(|id| (distance(query, id), id as u32)).collect();
        order.sort();
        for at in 0..5 {
            assert_eq!((far[5 * query + at], found[5 * query + at]), order[at], "query {query} place {at}");
        }
    }

    let plot = folder.path("p.svg");
    let of = ["hamming", "evaluate", "--base", &codes, "--labels", &voices];
    let report = json(&[&of[..], &["--top", "10,100", "--plot", &plot]].concat());
    assert!(report["map_all"].as_f64().unwrap() > 0.75 && report["leave_one_out"] == true, "{report}");
    for key in ["map_all_tie_aware", "precision_radius_2", "empty_balls", "recall_radius_2"] {
        assert!(report[key].is_number(), "{key} of {report}");
    }
    assert_eq!(report["top"][1]["n"], 100);
    assert_eq!(report["radius"]["precision"].as_array().unwrap().len(), 65);
    assert_eq!(report["radius"]["recall"][64], 1.0);
    let pairs = |key: &str| report[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(pairs("same_label") + pairs("different_label"), 1535 * 1534);
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("recall") && svg.contains("bits that differ"));
    let other = json(&[&of[..], &["--queries", &codes, "--query-labels", &voices]].concat());
    assert!(
        other["leave_one_out"] == false && other["map_all"].as_f64() > report["map_all"].as_f64(),
        "each finds itself"
    );
    let text = run(&of);
    assert!(String::from_utf8_lossy(&text.stdout).contains("expected over ties"));
}

/// By hand: four codes of 32 bits.
#[test]
fn small_codes_by_hand() {
    let folder = Folder::new();
    let base = words(&folder, "c.npy", 1, &[0, 1, 0xff, 1]);
    let queries = words(&folder, "q.npy", 1, &[0, 3]);
    let (ids, distances) = (folder.path("i.npy"), folder.path("d.npy"));
    let search = |base: &str, queries: &str, k: &str| {
        json(&[
            "hamming",
            "search",
            "--base",
            base,
            "--queries",
            queries,
            "-k",
            k,
            "--ids",
            &ids,
            "--distances",
            &distances,
        ])
    };
    assert_eq!(search(&base, &queries, "9")["k"], 4, "what there is");
    assert_eq!(read_npy::<u32>(&ids).1, [0, 1, 3, 2, 1, 3, 0, 2]);
    assert_eq!(read_npy::<u32>(&distances).1, [0, 1, 1, 8, 1, 1, 2, 6]);
    let same = |base: &str, queries: &str| {
        search(base, queries, "2");
        assert_eq!(read_npy::<u32>(&ids).1, [0, 1, 1, 3], "{base}");
    };
    // The same bits as bytes, in Fortran order and in another byte order.
    let bytes: Vec<u8> = [0u32, 1, 0xff, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    let columns: Vec<u8> = (0..4).flat_map(|j| (0..4).map(move |i| (i, j))).map(|(i, j)| bytes[4 * i + j]).collect();
    let big: Vec<u8> = [0u32, 1, 0xff, 1].iter().flat_map(|word| word.to_be_bytes()).collect();
    same(&folder.npy("b.npy", "|u1", false, "(4, 4)", &bytes), &queries);
    same(&folder.npy("f.npy", "|u1", true, "(4, 4)", &columns), &queries);
    same(&folder.npy("big.npy", ">u4", false, "(4, 1)", &big), &queries);

    let (of_base, of_queries) = (labels(&folder, "y.npy", &[1, 2, 1, 1]), labels(&folder, "z.npy", &[1, 2]));
    let report = json(&[
        "hamming",
        "evaluate",
        "--base",
        &base,
        "--labels",
        &of_base,
        "--queries",
        &queries,
        "--query-labels",
        &of_queries,
    ]);
    // Query 0 sees 1, 2, 1, 1 and query 1 sees 2, 1, 1, 1 by the lowest id; over ties one of two is first.
    let lowest = ((1.0 + 2.0 / 3.0 + 3.0 / 4.0) / 3.0 + 1.0) / 2.0;
    let expected = (((1.0 + 2.0 / 3.0 + 3.0 / 4.0) / 3.0 + (1.0 + 1.0 + 3.0 / 4.0) / 3.0) / 2.0 + 0.75) / 2.0;
    let number = |key: &str| report[key].as_f64().unwrap();
    assert!((number("map_all") - lowest).abs() < 1e-12 && (number("map_all_tie_aware") - expected).abs() < 1e-12);
    // Within 2: 1, 2, 1 and 2, 1, 1.
    assert!((number("precision_radius_2") - (2.0 / 3.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
    assert_eq!(number("empty_balls"), 0.0);
}

#[test]
fn every_method_makes_codes() {
    let folder = Folder::new();
    let rows = folder.rows("x.npy", 16, &some_rows(60, 16));
    let other = folder.rows("y.npy", 8, &some_rows(60, 8));
    let out = folder.path("c.npy");
    for (method, bits) in [("sign", "16"), ("mean", "16"), ("median", "8"), ("hyperplane", "72"), ("itq", "8")] {
        json(&["hamming", "binarize", &rows, "--method", method, "--bits", bits, "--out", &out]);
        let (shape, words) = read_npy::<u32>(&out);
        let bits: u32 = bits.parse().unwrap();
        assert_eq!(shape, [60, u64::from(bits.div_ceil(32))], "{method}");
        let last = words[shape[1] as usize - 1];
        assert!(bits.is_multiple_of(32) || last >> (bits % 32) == 0, "{method}: padding is 0");
    }
    let seeded = |seed: &str| {
        json(&["hamming", "binarize", &rows, "--method", "hyperplane", "--bits", "64", "--seed", seed, "--out", &out]);
        fs::read(&out).unwrap()
    };
    assert!(seeded("1") == seeded("1") && seeded("1") != seeded("2"));
    let views = ["--view", &other, "--weights", "1,0.5", "--normalize"];
    let report = json(&[&["hamming", "binarize", &rows, "--out", &out][..], &views].concat());
    assert_eq!((report["dim"].as_u64(), report["bits"].as_u64()), (Some(24), Some(24)), "{report}");
    let learned = ["--fit", &rows, "--method", "mean", "--rule", "above"];
    json(&[&["hamming", "binarize", &rows, "--out", &out][..], &learned].concat());
}

#[test]
fn neighbours_of_rows() {
    let folder = Folder::new();
    let base = folder.rows("x.npy", 2, &[0.0, 0.0, 3.0, 4.0, 0.0, 1.0, 3.0, 4.0, 0.0, -2.0]);
    let queries = folder.file("q.csv", "0,0\n3,4\n");
    let (ids, distances, lid) = (folder.path("i.npy"), folder.path("d.npy"), folder.path("l.npy"));
    let knn = ["knn", "--base", &base, "--queries", &queries, "--ids", &ids, "--distances", &distances];
    let found = folder.npy("f.npy", "<i8", false, "(2, 2)", &[0i64, 4, 3, -1].map(i64::to_le_bytes).concat());
    let report = json(&[&knn[..], &["-k", "9", "--lid", &lid, "--found", &found]].concat());
    assert_eq!((report["k"].as_u64(), report["dim"].as_u64()), (Some(5), Some(2)), "{report}");
    assert_eq!(report["recall"], 0.3, "3 of 10");
    assert_eq!(read_npy::<u32>(&ids).1, [0, 2, 4, 1, 3, 1, 3, 2, 0, 4]);
    assert_eq!(read_npy::<f32>(&distances).1, [0.0, 1.0, 2.0, 5.0, 5.0, 0.0, 0.0, 18f32.sqrt(), 5.0, 45f32.sqrt()]);
    let of = |r: &[f64]| -(r.len() as f64) / r.iter().map(|x| (x / r[r.len() - 1]).ln()).sum::<f64>();
    let expected = [of(&[1.0, 2.0, 5.0, 5.0]), of(&[18f64.sqrt(), 5.0, 45f64.sqrt()])];
    let (_, lid_found) = read_npy::<f32>(&lid);
    assert!(
        lid_found.iter().zip(expected).all(|(a, b)| (f64::from(*a) / b - 1.0).abs() < 1e-6),
        "{lid_found:?} {expected:?}"
    );
    json(&[&knn[..], &["-k", "2", "--metric", "ip"]].concat());
    assert_eq!(read_npy::<u32>(&ids).1, [0, 1, 1, 3]);
    assert_eq!(read_npy::<f32>(&distances).1[2..], [25.0, 25.0]);
    let text = run(&[&knn[..], &["-k", "4", "--lid", &lid]].concat());
    assert!(String::from_utf8_lossy(&text.stdout).contains("local intrinsic dimension"));
}

#[test]
fn what_is_no_code() {
    let folder = Folder::new();
    let (narrow, wide) = (words(&folder, "narrow.npy", 1, &[1, 2]), words(&folder, "wide.npy", 2, &[1, 2, 3, 4]));
    let none = folder.npy("none.npy", "<u4", false, "(0, 2)", &[]);
    let cut = folder.npy("cut.npy", "<u4", false, "(9, 2)", &[0; 70]);
    let flat = folder.npy("flat.npy", "<u4", false, "(2,)", &[0; 8]);
    let huge = folder.npy("huge.npy", "|u1", false, "(1, 1025)", &[0; 1025]);
    let rows = folder.rows("x.npy", 6, &some_rows(10, 6));
    let (ids, distances) = (folder.path("i.npy"), folder.path("d.npy"));
    let search = |base: &str, queries: &str, k: &str, words: &[&str]| {
        let of = ["hamming", "search", "--base", base, "--queries", queries, "-k", k, "--ids", &ids];
        complains(&folder, &[&of[..], &["--distances", &distances]].concat(), words);
    };
    search(&narrow, &wide, "1", &["wide.npy", "64 bits", "narrow.npy", "32"]);
    search(&narrow, &narrow, "0", &["-k", "from 1 up"]);
    search(&none, &wide, "1", &["none.npy", "no codes"]);
    search(&wide, &none, "1", &["none.npy", "no codes"]);
    search(&cut, &wide, "1", &["cut.npy", "truncated"]);
    search(&flat, &wide, "1", &["flat.npy", "(2,)"]);
    search(&huge, &wide, "1", &["huge.npy", "8200 bits"]);
    search(&rows, &wide, "1", &["x.npy", "float32", "uint32"]);
    search(&folder.path("gone.npy"), &wide, "1", &["gone.npy", "no such file"]);
    let same = ["hamming", "search", "--base", &narrow, "--queries", &narrow, "-k", "1", "--ids", &ids];
    complains(&folder, &[&same[..], &["--distances", &ids]].concat(), &["i.npy", "two outputs"]);
    complains(&folder, &[&same[..], &["--distances", &narrow]].concat(), &["narrow.npy", "also an input"]);

    let (two, three) = (labels(&folder, "two.npy", &[1, 2]), labels(&folder, "three.npy", &[1, 2, 3]));
    let evaluate = |more: &[&str], words: &[&str]| {
        complains(&folder, &[&["hamming", "evaluate", "--base", &narrow][..], more].concat(), words);
    };
    evaluate(&["--labels", &three], &["three.npy", "3 labels", "expected 2"]);
    evaluate(&["--labels", &two, "--queries", &wide, "--query-labels", &two], &["wide.npy", "64 bits"]);
    evaluate(&["--labels", &two, "--queries", &narrow], &["--query-labels"]);
    evaluate(&["--labels", &two, "--queries", &narrow, "--query-labels", &three], &["three.npy", "expected 2"]);
    evaluate(&["--labels", &rows], &["x.npy"]);
    evaluate(&["--labels", &two, "--top", "3,0"], &["--top"]);
    evaluate(&["--labels", &two, "--plot", &two], &["two.npy", "also an input"]);
}

#[test]
fn what_makes_no_codes() {
    let folder = Folder::new();
    let mut hostile = some_rows(40, 16);
    hostile[17 * 16 + 3] = f32::NAN;
    let nan = folder.rows("nan.npy", 16, &hostile);
    let rows = folder.rows("x.npy", 16, &some_rows(40, 16));
    let odd = folder.rows("odd.npy", 13, &some_rows(40, 13));
    let short = folder.rows("short.npy", 16, &some_rows(39, 16));
    let zero = folder.rows("zero.npy", 16, &[0.0; 32]);
    let empty = folder.npy("empty.npy", "<f4", false, "(0, 16)", &[]);
    let out = folder.path("c.npy");
    let check = |rows: &str, more: &[&str], words: &[&str]| {
        complains(&folder, &[&["hamming", "binarize", rows, "--out", &out][..], more].concat(), words);
    };
    for method in ["sign", "mean", "median", "hyperplane", "itq"] {
        check(&nan, &["--method", method, "--bits", "16"], &["nan.npy", "row 17", "element 3"]);
        check(&rows, &["--method", method, "--bits", "12"], &["x.npy", "12 bits", "multiple of 8"]);
        check(&rows, &["--method", method, "--bits", "0"], &["x.npy", "0 bits", "multiple of 8"]);
        check(&empty, &["--method", method, "--bits", "8"], &["empty.npy", "no rows"]);
    }
    check(&rows, &["--bits", "24"], &["16 features", "24 bits"]);
    check(&odd, &[], &["odd.npy", "13 bits", "--bits"]);
    check(&rows, &["--method", "itq"], &["--bits"]);
    check(&rows, &["--method", "hyperplane", "--bits", "8200"], &["8200 bits"]);
    check(&rows, &["--view", &short], &["short.npy", "39 rows", "40"]);
    check(&rows, &["--view", &odd, "--fusion", "sum", "--bits", "8"], &["view has shape"]);
    check(&rows, &["--view", &rows, "--weights", "1,2,3"], &["weights"]);
    check(&zero, &["--normalize"], &["zero.npy", "row 0 is zero"]);
    check(&rows, &["--method", "nonsense"], &["nonsense", "itq"]);
    check(&rows, &["--model", &out], &["two outputs"]);
    let not_one = folder.file("m.safetensors", [1, 2, 3]);
    check(&rows, &["--with", &not_one], &["m.safetensors"]);
    let model = folder.path("good.safetensors");
    json(&["hamming", "binarize", &rows, "--method", "mean", "--model", &model, "--out", &out]);
    fs::remove_file(&out).unwrap();
    check(&odd, &["--with", &model], &["16 features"]);
    check(&rows, &["--with", &model, "--bits", "8"], &["--with", "--bits"]);
}

#[test]
fn what_has_no_neighbours() {
    let folder = Folder::new();
    let mut hostile = some_rows(40, 6);
    hostile[17 * 6] = f32::NAN;
    let (nan, rows) = (folder.rows("nan.npy", 6, &hostile), folder.rows("x.npy", 6, &some_rows(40, 6)));
    let other = folder.rows("other.npy", 5, &some_rows(40, 5));
    let zero = folder.rows("zero.npy", 6, &[0.0; 12]);
    let empty = folder.npy("empty.npy", "<f4", false, "(0, 6)", &[]);
    let cut = folder.npy("cut.npy", "<f4", false, "(10, 6)", &[0; 100]);
    let (ids, distances, lid) = (folder.path("i.npy"), folder.path("d.npy"), folder.path("l.npy"));
    let check = |base: &str, queries: &str, more: &[&str], words: &[&str]| {
        let of = ["knn", "--base", base, "--queries", queries, "--ids", &ids, "--distances", &distances];
        complains(&folder, &[&of[..], more].concat(), words);
    };
    check(&rows, &rows, &["-k", "0"], &["-k", "from 1 up"]);
    check(&nan, &rows, &["-k", "1"], &["nan.npy", "row 17"]);
    check(&rows, &nan, &["-k", "1"], &["nan.npy", "row 17"]);
    check(&rows, &other, &["-k", "1"], &["other.npy", "5 elements", "6"]);
    check(&empty, &rows, &["-k", "1"], &["empty.npy", "no rows"]);
    check(&cut, &rows, &["-k", "1"], &["cut.npy", "truncated"]);
    check(&zero, &rows, &["-k", "1", "--metric", "cosine"], &["zero.npy", "row 0 is zero"]);
    check(&rows, &rows, &["-k", "1", "--metric", "ip", "--lid", &lid], &["--lid", "no distances"]);
    check(&rows, &rows, &["-k", "1", "--found", &other], &["other.npy", "expected integers"]);
    check(&rows, &rows, &["-k", "1", "--lid", &ids], &["two outputs"]);
    json(&["knn", "--base", &zero, "--queries", &rows, "-k", "1", "--ids", &ids, "--distances", &distances]);
}
