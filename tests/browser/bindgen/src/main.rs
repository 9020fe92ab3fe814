//! `bindgen IN.wasm OUT_DIR`: JavaScript bindings as an ES module, and the wasm they load.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (input, out) = (arguments.next().context("IN.wasm")?, arguments.next().context("OUT_DIR")?);
    wasm_bindgen_cli_support::Bindgen::new()
        .input_path(&input)
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(&out)
}
