//! What the page under `tests/browser/` has to show: its families on the native CPU path.

#[allow(dead_code, reason = "the page searches one drawing at a time, too")]
#[path = "browser/src/families/mod.rs"]
mod families;

use std::sync::LazyLock;
use std::time::Instant;

use families::{Emoji, Failure};
use orthant::Device;
use serde_json::json;

/// Components of the page's mixture; iterations until it converges, and those that a software adapter has time for.
const COMPONENTS: usize = 16;
const ITERATIONS: [usize; 2] = [200, 6];

fn data(name: &str) -> Result<Vec<u8>, Failure> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).map_err(|error| format!("{path}: {error}").into())
}

fn now() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64() * 1e3
}

#[test]
#[ignore = "writes to $ORTHANT_WRITE_EXPECTED what tests/browser/check.mjs compares the page with"]
fn expected() -> Result<(), Failure> {
    let path = std::env::var("ORTHANT_WRITE_EXPECTED")?;
    let found = pollster::block_on(async {
        let device = Device::cpu();
        let (_, emoji) =
            Emoji::read(&device, &data("emoji_features_512.npy")?, &data("emoji_labels_512.npy")?, now).await?;
        let (rows, labels) = (data("wordnet_minilm_4k.npy")?, data("wordnet_labels_4k.npy")?);
        let [whole, short] =
            ITERATIONS.map(|iterations| families::mixture(&device, &rows, &labels, (COMPONENTS, iterations), now));
        Ok::<_, Failure>(json!({
            "bessel": families::bessel(&device, &data("golden_bessel.csv")?, now).await?,
            "emoji": emoji,
            "mixture": whole.await?,
            "mixture_short": short.await?,
            "cache": families::cache(&device, &data("smollm2_kv_layer08.safetensors")?, now).await?,
        }))
    })?;
    Ok(std::fs::write(path, found.to_string())?)
}
