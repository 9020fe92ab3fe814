//! A Ballista scheduler that knows orthant's SQL functions.
#![deny(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use orthant::sql::cluster::{SchedulerOptions, serve_scheduler};

/// A Ballista scheduler that knows orthant's SQL functions
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Address to listen at. There is no authentication: whoever reaches it can read the files that executors can
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:50050")]
    bind: SocketAddr,
    /// Give an executor up, and its tasks to others, when it was not heard of for so many seconds
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    executor_timeout: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let served =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Into::into).and_then(|runtime| {
            let executor_timeout = Duration::from_secs(options.executor_timeout);
            eprintln!("orthant-scheduler: listening at {}", options.bind);
            runtime.block_on(serve_scheduler(&SchedulerOptions {
                executor_timeout,
                ..SchedulerOptions::new(options.bind)
            }))
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orthant-scheduler: {}: {error}", options.bind);
            ExitCode::FAILURE
        }
    }
}
