//! A Ballista executor that knows orthant's SQL functions.
#![deny(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use orthant::Device;
use orthant::sql::cluster::{ExecutorOptions, serve_executor};

/// A Ballista executor that knows orthant's SQL functions. It computes where ORTHANT_DEVICE says: auto, cpu or gpu
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The scheduler it works for
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50050")]
    scheduler: String,
    /// Address of this machine that the scheduler and other executors reach it at. There is no authentication
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port at which results are fetched
    #[arg(long, default_value_t = 50051)]
    port: u16,
    /// Port at which tasks come in
    #[arg(long, default_value_t = 50052)]
    grpc_port: u16,
    /// Folder for results between stages [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Tasks at a time [default: the processors there are]
    #[arg(long, value_name = "N")]
    tasks: Option<usize>,
    /// Tell the scheduler every so many seconds that it is there
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    heartbeat: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orthant-executor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let scheduler =
        options.scheduler.rsplit_once(':').and_then(|(host, port)| Some((host.to_string(), port.parse().ok()?)));
    let scheduler = scheduler.ok_or_else(|| format!("--scheduler {}: expected HOST:PORT", options.scheduler))?;
    let device = Device::from_env()?;
    let defaults = ExecutorOptions::new(scheduler);
    let executor = ExecutorOptions {
        host: options.host,
        port: options.port,
        grpc_port: options.grpc_port,
        work_dir: options.work_dir.clone(),
        tasks: options.tasks.unwrap_or(defaults.tasks),
        heartbeat: Duration::from_secs(options.heartbeat),
        device,
        ..defaults
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    eprintln!(
        "orthant-executor: at {}:{} for {} on {}",
        executor.host, executor.port, options.scheduler, executor.device
    );
    Ok(runtime.block_on(serve_executor(&executor))?)
}
