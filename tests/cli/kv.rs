//! `orthant kv`, on the activations of a real decoder and on small ones made up.

use serde_json::json;

use super::*;

const LAYER: &str = "smollm2_kv_layer08.safetensors";

/// Errors measured elsewhere, by name.
fn golden() -> serde_json::Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(data("golden_kv.json")).unwrap()).unwrap()
}

/// What to ask for what a name of the table is of; none for the widths that no cache has.
fn asked(name: &str) -> Option<Vec<String>> {
    let parts: Vec<&str> = name.split('/').collect();
    let sinks = parts.last()?.strip_prefix("sink")?;
    let options = match parts[1].strip_prefix("kivi") {
        Some("3") => return None,
        Some(bits) => format!("--bits {bits}"),
        None => {
            let way = match parts[1] {
                "mkv" => "--frame post --weighting pca",
                "postq" => "--frame post --weighting q",
                "blk64q" => "--frame block64 --weighting q",
                _ => return None,
            };
            format!("{way} --rank {} --bits {}", parts[2].strip_prefix('r')?, parts[3].strip_suffix("bit")?)
        }
    };
    Some(format!("{options} --sinks {sinks} --window 32").split(' ').map(String::from).collect())
}

/// Compares with the table; returns by what part of what is allowed it is off.
#[track_caller]
fn agrees(file: &str, name: &str, expected: f64) -> f64 {
    let asked = asked(name).unwrap();
    let args: Vec<&str> = ["kv", "evaluate", file].into_iter().chain(asked.iter().map(String::as_str)).collect();
    let found = json(&args)["relative_error"].as_f64().unwrap();
    // 2 %, and the table's fifth digit. At full rank: latents of 16 bits are rounded to f16 here and not at all there, which is up to 9e-4 of the output;
    // of 4 and 8 bits the signs of eigenvectors count, 16 % (tests/kv_evaluate.rs has those of the table, and its 2 %).
    let (relative, absolute) = match name.contains("/r64/") {
        true if name.contains("/16bit/") => (0.0, 1e-3),
        true => (0.16, 5.1e-6),
        false => (0.02, 5.1e-6),
    };
    let off = (found - expected).abs() / (relative * expected + absolute);
    assert!(off <= 1.0, "{name}: {found}, expected {expected}");
    off
}

#[test]
fn errors_are_those_of_the_golden_table() {
    let golden = golden();
    for name in [
        "mkv/r64/16bit/sink4",
        "mkv/r64/4bit/sink4",
        "mkv/r32/4bit/sink0",
        "postq/r26/16bit/sink4",
        "postq/r64/8bit/sink0",
        "blk64q/r32/4bit/sink4",
        "blk64q/r13/8bit/sink0",
        "kivi2/sink4",
        "kivi4/sink0",
    ] {
        let name = format!("layer8/{name}");
        agrees(&data(LAYER), &name, golden[&name].as_f64().unwrap());
    }
}

/// All 342 that a cache has bits for, of the files that `ORTHANT_KV_DATA` is the folder of: minutes.
#[test]
#[ignore = "needs the files of three layers, 24 MB"]
fn errors_are_those_of_the_whole_golden_table() {
    let folder = std::env::var("ORTHANT_KV_DATA").unwrap();
    let mut worst = (0.0, String::new());
    let mut count = 0;
    for (name, expected) in golden() {
        let layer: usize = name.split('/').next().unwrap().strip_prefix("layer").unwrap().parse().unwrap();
        if asked(&name).is_none() {
            continue;
        }
        count += 1;
        let off =
            agrees(&format!("{folder}/smollm2_kv_layer{layer:02}.safetensors"), &name, expected.as_f64().unwrap());
        if off > worst.0 {
            worst = (off, name);
        }
    }
    println!("{count} values, the worst {:.3} of what is allowed: {}", worst.0, worst.1);
    assert_eq!(count, 342);
}

/// Projections of a file, and those made on the way, are the same; a report says what is asked for; heads add up.
#[test]
fn a_layer_is_calibrated_and_evaluated() {
    let folder = Folder::new();
    let (out, plot) = (folder.path("p.safetensors"), folder.path("p.svg"));
    let layer = data(LAYER);
    let made = json(&["kv", "calibrate", &layer, "--layers", "8", "--budget", "0.5", "--out", &out]);
    let kept = made["kept"].as_f64().unwrap();
    // Of 6 heads of 64, in steps of 4.
    assert!(kept <= 0.5 && kept > 0.5 - 8.0 / 384.0, "{made}");
    let ranks: Vec<u64> = made["heads"].as_array().unwrap().iter().map(|head| head["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks.len(), 6);
    assert!(ranks.iter().any(|rank| *rank != ranks[0]), "{made}");

    let with = json(&["kv", "evaluate", &layer, "--projections", &out]);
    let without = json(&["kv", "evaluate", &layer, "--budget", "0.5", "--plot", &plot]);
    for key in ["relative_error", "bytes", "heads"] {
        assert_eq!(with[key], without[key]);
    }
    let uniform = json(&["kv", "evaluate", &layer, "--rank", "32"]);
    assert!(with["relative_error"].as_f64() < uniform["relative_error"].as_f64(), "{with} {uniform}");
    let heads = with["heads"].as_array().unwrap();
    let found: Vec<u64> = heads.iter().map(|head| head["rank"].as_u64().unwrap()).collect();
    assert_eq!(found, ranks);
    assert_eq!(heads.iter().map(|head| head["bytes"].as_u64().unwrap()).sum::<u64>(), with["bytes"].as_u64().unwrap());
    assert_eq!(with["bytes_uncompressed"], 2 * 2 * 3 * 2048 * 64);
    for (head, (kind, number)) in heads.iter().zip([("k", 0), ("k", 1), ("k", 2), ("v", 0), ("v", 1), ("v", 2)]) {
        assert_eq!((&head["layer"], &head["kind"], &head["head"]), (&json!(8), &json!(kind), &json!(number)));
        let error = head["relative_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1.0, "{head}");
    }
    let svg = fs::read_to_string(&plot).unwrap();
    for word in ["uncompressed", "4 bits only", "one rank for all heads", "50 % kept", "\n64\n"] {
        assert!(svg.contains(word), "{word}");
    }
    let text = run(&["kv", "evaluate", &layer, "--rank", "32"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("8 ")).count(), 7, "{text}");
    assert!(text.contains("% less") && text.contains("4 bits, window 32, 4 sinks"), "{text}");
}

/// A file of two layers, 2 KV heads of 8 and 4 query heads, with names that begin with `layer.N.`.
fn two_layers(folder: &Folder, name: &str, change: impl Fn(&str, &mut Vec<f32>)) -> String {
    const TOKENS: usize = 96;
    let noise = |seed: usize, count: usize| -> Vec<f32> {
        let mut state = seed as u32;
        (0..count)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * (1.0 + (i % 8) as f32)
            })
            .collect()
    };
    // The second moment of rows of two heads side by side, and their mean.
    let moments = |rows: &[f32]| {
        let row = |n: usize, i: usize| rows[(i / 8 * TOKENS + n) * 8 + i % 8];
        let mean: Vec<f32> = (0..16).map(|i| (0..TOKENS).map(|n| row(n, i)).sum::<f32>() / TOKENS as f32).collect();
        let second = |at: usize| (0..TOKENS).map(|n| row(n, at / 16) * row(n, at % 16)).sum::<f32>() / TOKENS as f32;
        ((0..256).map(second).collect::<Vec<f32>>(), mean)
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for layer in [3, 5] {
        let (k, v) = (noise(layer, 2 * TOKENS * 8), noise(layer + 10, 2 * TOKENS * 8));
        let ((k_mom, k_mean), (v_mom, v_mean)) = (moments(&k), moments(&v));
        let mut add = |what: &str, shape: &[usize], mut elements: Vec<f32>| {
            change(&format!("layer.{layer}.{what}"), &mut elements);
            tensors.push((format!("layer.{layer}.{what}"), shape.to_vec(), elements));
        };
        add("k_post", &[2, TOKENS, 8], k);
        add("v", &[2, TOKENS, 8], v);
        add("q_post_last32", &[4, 32, 8], noise(layer + 20, 4 * 32 * 8));
        add("cal_k_post_mom", &[16, 16], k_mom);
        add("cal_k_post_mean", &[16], k_mean);
        add("cal_v_mom", &[16, 16], v_mom);
        add("cal_v_mean", &[16], v_mean);
    }
    let bytes = |elements: &[f32]| elements.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let kept = tensors.iter().filter(|(_, _, elements)| !elements.is_empty());
    let tensors: Vec<(&str, &str, &[usize], Vec<u8>)> =
        kept.map(|(name, shape, elements)| (name.as_str(), "F32", &shape[..], bytes(elements))).collect();
    safetensors(folder, name, &tensors)
}

#[test]
fn layers_are_chosen_and_share_a_budget() {
    let folder = Folder::new();
    let file = two_layers(&folder, "two.safetensors", |_, _| {});
    let way = ["--frame", "post", "--weighting", "pca", "--bits", "8"];
    let run = |more: &[&str]| json(&[&["kv", "evaluate", &file][..], &way, more].concat());
    let both = run(&["--rank", "8"]);
    assert_eq!((&both["layers"], both["heads"].as_array().unwrap().len()), (&json!([3, 5]), 8));
    // 8 bits of full rank.
    assert!(both["relative_error"].as_f64().unwrap() < 0.02, "{both}");
    let one = run(&["--rank", "8", "--layers", "5"]);
    assert_eq!((&one["layers"], one["heads"].as_array().unwrap().len()), (&json!([5]), 4));
    assert_eq!(one["bytes"].as_u64().unwrap() * 2, both["bytes"].as_u64().unwrap());
    let out = folder.path("p.safetensors");
    let made =
        json(&[&["kv", "calibrate", &file, "--layers", "3,5", "--budget", "0.6", "--out", &out][..], &way].concat());
    let sum: u64 = made["heads"].as_array().unwrap().iter().map(|head| head["rank"].as_u64().unwrap()).sum();
    assert_eq!(sum, 38, "0.6 of 64: {made}");
    // Words of 8 bits hold 4 channels: what ranks of bytes are, four at a time, is not what ranks of elements are.
    let bytes = run(&["--bytes", "64"]);
    assert!(bytes["heads"].as_array().unwrap().iter().all(|head| head["rank"].as_u64().unwrap() >= 1), "{bytes}");
    let evaluated = json(&["kv", "evaluate", &file, "--projections", &out, "--bits", "8"]);
    assert_eq!(
        evaluated["heads"].as_array().unwrap().iter().map(|head| head["rank"].as_u64().unwrap()).sum::<u64>(),
        38
    );
}

#[test]
fn kv_of_what_does_not_fit() {
    let folder = Folder::new();
    let out = folder.path("out");
    let layer = data(LAYER);
    let check = |more: &[&str], words: &[&str]| {
        complains(&folder, &[&["kv", "evaluate", &layer][..], more].concat(), words);
    };
    check(&["--rank", "0"], &["rank is 0", "1 to 64"]);
    check(&["--rank", "65"], &["rank is 65", "1 to 64"]);
    check(&["--budget", "0.01"], &["budget is 0.01", "at least 0.0625"]);
    check(&["--bytes", "10"], &["budget is 320", "at least", "bytes"]);
    for budget in ["0", "-1", "1.5", "nan"] {
        check(&["--budget", budget], &["expected above 0, at most 1"]);
    }
    check(&["--rank", "8", "--window", "31"], &["window is 31", "at least the 32"]);
    check(&["--rank", "8", "--sinks", "33"], &["sinks is 33"]);
    check(&["--rank", "8", "--frame", "sideways"], &["sideways", "pre, post, block64"]);
    check(&["--rank", "8", "--bits", "5"], &["5", "16, 8, 4, 2"]);
    check(&["--rank", "8", "--budget", "0.5"], &["--budget"]);
    check(&["--frame", "block64"], &["--frame", "--rank"]);
    check(&["--layers", "7"], &["layer 7 is not in it; there are: 8"]);
    check(&["--plot", &folder.path("none/p.svg")], &["p.svg: cannot be written"]);
    check(&["--projections", &layer], &["smollm2_kv_layer08.safetensors"]);
    check(&["--projections", &folder.path("none.safetensors")], &["none.safetensors", "no such file"]);
    let calibrate = |more: &[&str], words: &[&str]| {
        complains(&folder, &[&["kv", "calibrate", &layer][..], more].concat(), words);
    };
    calibrate(&["--out", &out], &["give --rank, --budget or --bytes"]);
    calibrate(&["--rank", "8"], &["--out"]);
    calibrate(&["--rank", "8", "--out", &folder.path("none/p.safetensors")], &["p.safetensors: cannot be written"]);
    calibrate(&["--rank", "99", "--out", &out], &["rank is 99"]);
    calibrate(&["--rank", "8", "--out", &layer], &["is also an input"]);

    let bytes = fs::read(&layer).unwrap();
    let cut = folder.file("cut.safetensors", &bytes[..bytes.len() / 2]);
    complains(&folder, &["kv", "evaluate", &cut], &["cut.safetensors", "truncated"]);
    let way = ["--frame", "post", "--weighting", "pca", "--rank", "4"];
    let of = |name: &str, change: &dyn Fn(&str, &mut Vec<f32>), words: &[&str]| {
        let file = two_layers(&folder, name, change);
        complains(&folder, &[&["kv", "evaluate", &file][..], &way].concat(), words);
    };
    for missing in ["v", "k_post", "q_post_last32", "cal_k_post_mom", "cal_v_mean"] {
        let name = format!("layer.5.{missing}");
        let said = if missing.starts_with('q') { "layer.5.q_post" } else { &name };
        of(
            "missing.safetensors",
            &|what, elements| {
                if what == name {
                    elements.clear()
                }
            },
            &["missing.safetensors", said],
        );
    }
    for name in ["layer.3.k_post", "layer.3.v", "layer.5.q_post_last32", "layer.5.cal_v_mom"] {
        of(
            "nan.safetensors",
            &|what, elements| {
                if what == name {
                    elements[9] = f32::NAN
                }
            },
            &[name, "index 9", "NaN"],
        );
    }
    // Block frames need to know how keys turn.
    let file = two_layers(&folder, "two.safetensors", |_, _| {});
    complains(&folder, &["kv", "evaluate", &file, "--rank", "4"], &["two.safetensors", "--theta"]);
}
