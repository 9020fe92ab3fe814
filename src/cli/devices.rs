//! `orthant devices`, and opening the device of every other command.

use std::io::Write;
use std::time::Instant;

use orthant::{AdapterInfo, Device};
use serde_json::{Value, json};

use super::args::{DeviceChoice, Devices};
use super::complaint::InLine;
use super::output::print;

/// Opens what `--device` says, or else what ORTHANT_DEVICE says.
pub fn open(choice: Option<DeviceChoice>) -> anyhow::Result<Device> {
    match choice {
        None => Device::from_env().in_line(),
        Some(DeviceChoice::Cpu) => Ok(Device::cpu()),
        Some(DeviceChoice::Gpu) => Device::gpu().in_line(),
        // What the command line says goes before the environment.
        Some(DeviceChoice::Auto) => match Device::adapters().into_iter().find(|adapter| adapter.chosen) {
            Some(adapter) => Device::gpu_at(adapter.index).in_line(),
            None => Ok(Device::cpu()),
        },
    }
}

/// The CPU, for work that only it does here: a line on stderr says so of a GPU that is there.
pub fn instead(gpu: &Device, what: &str) -> Device {
    let _ = writeln!(std::io::stderr(), "orthant: {what} on the CPU, not on {gpu}");
    Device::cpu()
}

/// The CPU, for work that only it does here. What `--device` or ORTHANT_DEVICE asks for must be there all the same; nothing is opened to
/// find what `auto` would be.
pub fn cpu_for(choice: Option<DeviceChoice>, what: &str) -> anyhow::Result<Device> {
    let variable = std::env::var("ORTHANT_DEVICE").unwrap_or_default();
    match (choice, variable.as_str()) {
        (Some(DeviceChoice::Auto | DeviceChoice::Cpu), _) | (None, "" | "auto" | "cpu") => Ok(Device::cpu()),
        _ => Ok(instead(&open(choice)?, what)),
    }
}

pub fn run(args: &Devices) -> anyhow::Result<()> {
    let start = Instant::now();
    let variable = std::env::var("ORTHANT_DEVICE").ok().filter(|value| !value.is_empty() && value != "auto");
    let device = open(args.common.device)?;
    let taken = device.as_gpu().map(|gpu| gpu.info().index);
    let decided = match (args.common.device, variable) {
        (Some(DeviceChoice::Cpu), _) => Some("--device cpu".to_string()),
        (Some(DeviceChoice::Gpu), _) => Some("--device gpu".to_string()),
        (Some(DeviceChoice::Auto), _) | (None, None) => None,
        (None, Some(value)) => Some(format!("ORTHANT_DEVICE={value}")),
    };
    let mut list: Vec<Value> = Vec::new();
    for mut adapter in Device::adapters() {
        adapter.chosen = Some(adapter.index) == taken;
        if let Some(decided) = &decided {
            let not = if adapter.chosen { "" } else { "not " };
            adapter.reason = format!("{not}taken by {decided}");
        }
        // Only a device that is open has been tested.
        let extended = match Device::gpu_at(adapter.index) {
            Ok(device) => device.as_gpu().map(orthant::Gpu::extended).ok_or_else(String::new),
            Err(error) => Err(error.to_string()),
        };
        let mut value = serde_json::to_value(&adapter)?;
        value["extended"] = match &extended {
            Ok(extended) => json!({
                "arithmetic": extended.arithmetic.map(|arithmetic| arithmetic.to_string()),
                "self_test": if extended.guard.is_some() { "passed" } else { &extended.failure },
                "guard": extended.guard, "cost_of_double_single": extended.cost_of_double_single,
            }),
            Err(error) => json!({"arithmetic": null, "self_test": error}),
        };
        list.push(value);
        if !args.common.json {
            let extended = extended.map_or_else(|error| error, |extended| extended.to_string());
            print(&describe(&adapter, &extended))?;
        }
    }
    let threads = rayon::current_num_threads();
    let reason = match (&decided, device.is_cpu()) {
        (Some(decided), true) => format!("taken by {decided}"),
        (Some(decided), false) => format!("not taken by {decided}"),
        (None, true) => "there is no hardware GPU".to_string(),
        (None, false) => "there is a hardware GPU".to_string(),
    };
    list.push(json!({
        "name": "CPU", "backend": "native", "type": "cpu", "driver": std::env::consts::ARCH,
        "features": ["f64"], "limits": {"threads": threads}, "chosen": device.is_cpu(), "reason": reason,
    }));
    if args.common.json {
        let seconds = start.elapsed().as_secs_f64();
        return print(&format!("{}\n", json!({"devices": list, "device": device.to_string(), "seconds": seconds})));
    }
    let mark = if device.is_cpu() { '*' } else { ' ' };
    print(&format!("{mark} CPU, {threads} threads ({})\n    {reason}\n", std::env::consts::ARCH))?;
    print(&format!("\n* what runs: {device}\n"))
}

fn describe(adapter: &AdapterInfo, extended: &str) -> String {
    let mark = if adapter.chosen { '*' } else { ' ' };
    let limits: Vec<String> = adapter.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!(
        "{mark} {adapter}, {}, {}\n    features: {}\n    extended precision: {extended}\n    limits: {}\n    {}\n",
        format!("{:?}", adapter.kind).to_lowercase(),
        adapter.driver,
        if adapter.features.is_empty() { "none that kernels use".to_string() } else { adapter.features.join(", ") },
        limits.join(", "),
        adapter.reason,
    )
}
