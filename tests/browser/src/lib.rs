//! [`Session`]: the families of the page, for JavaScript. What they compute is in `families`, which `tests/browser.rs` runs natively.

mod families;

use families::{Emoji, Failure};
use orthant::Device;
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;

/// An open device, and what families keep on it. Methods give JSON; `milliseconds` in it is the time of the computation alone.
#[wasm_bindgen]
pub struct Session {
    device: Device,
    emoji: Option<Emoji>,
}

fn text(found: Result<Value, Failure>) -> Result<String, JsError> {
    found.map(|value| value.to_string()).map_err(|error| JsError::new(&error.to_string()))
}

#[wasm_bindgen]
impl Session {
    /// On `device`: `cpu`; `gpu`, any adapter; `auto`, as [`Device::auto`] chooses.
    pub async fn open(device: String) -> Result<Session, JsError> {
        console_error_panic_hook::set_once();
        let device = match device.as_str() {
            "cpu" => Device::cpu(),
            "gpu" => Device::gpu_async().await?,
            _ => Device::auto_async().await,
        };
        Ok(Self { device, emoji: None })
    }

    /// The device as it prints itself, whether it is the CPU, and the adapter's limits that kernels respect.
    pub fn describe(&self) -> String {
        let info = self.device.as_gpu().map(orthant::Gpu::info);
        json!({
            "device": self.device.to_string(),
            "cpu": self.device.is_cpu(),
            "adapter_name": info.map(|info| &info.name),
            "features": info.map(|info| &info.features),
            "limits": info.map(|info| &info.limits),
        })
        .to_string()
    }

    /// See [`families::bessel`].
    pub async fn bessel(&self, golden: Vec<u8>) -> Result<String, JsError> {
        text(families::bessel(&self.device, &golden, now).await)
    }

    /// See [`Emoji::read`]: keeps the codes for [`Session::search`].
    pub async fn emoji(&mut self, features: Vec<u8>, labels: Vec<u8>) -> Result<String, JsError> {
        match Emoji::read(&self.device, &features, &labels, now).await {
            Ok((emoji, found)) => {
                self.emoji = Some(emoji);
                text(Ok(found))
            }
            Err(error) => text(Err(error)),
        }
    }

    /// The drawings nearest to drawing `row`.
    pub async fn search(&self, row: usize, k: usize) -> Result<String, JsError> {
        match &self.emoji {
            Some(emoji) => text(emoji.search(row, k, now).await),
            None => Err(JsError::new("there are no emoji yet")),
        }
    }

    /// See [`families::mixture`].
    pub async fn mixture(
        &self,
        rows: Vec<u8>,
        labels: Vec<u8>,
        components: usize,
        iterations: usize,
    ) -> Result<String, JsError> {
        text(families::mixture(&self.device, &rows, &labels, (components, iterations), now).await)
    }

    /// See [`families::cache`].
    pub async fn cache(&self, activations: Vec<u8>) -> Result<String, JsError> {
        text(families::cache(&self.device, &activations, now).await)
    }
}

#[wasm_bindgen]
extern "C" {
    /// Milliseconds; of a window and of a worker.
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}
