//! The command line tool. Every command reads files, computes with the library, and writes files; results go to stdout,
//! progress and complaints to stderr. Exit code 0: done; 2: the input is wrong, one line says how; 1: anything else.

mod args;
mod attention;
mod bessel;
mod clustering;
mod complaint;
mod devices;
mod files;
mod hamming;
mod knn;
mod kv;
mod memory;
mod output;
mod plot;
mod progress;
#[cfg(feature = "datafusion")]
mod sql;
mod vmf;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match args::Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return code(output::print(&error.render().to_string()));
        }
        Err(error) => {
            complain(&usage(&error));
            return ExitCode::from(2);
        }
    };
    code(match command {
        args::Command::Devices(args) => devices::run(&args),
        args::Command::Bessel(args) => bessel::run(&args),
        args::Command::Vmf(args::Vmf::Fit(args)) => vmf::fit::run(&args),
        args::Command::Vmf(args::Vmf::Score(args)) => vmf::score::run(&args),
        args::Command::Vmf(args::Vmf::Sample(args)) => vmf::sample::run(&args),
        args::Command::Attention(args) => attention::run(&args),
        args::Command::Hamming(args::Hamming::Binarize(args)) => hamming::binarize::run(&args),
        args::Command::Hamming(args::Hamming::Search(args)) => hamming::search::run(&args),
        args::Command::Hamming(args::Hamming::Evaluate(args)) => hamming::evaluate::run(&args),
        args::Command::Knn(args) => knn::run(&args),
        #[cfg(feature = "datafusion")]
        args::Command::Sql(args) => sql::run(&args),
        args::Command::Kv(args::Kv::Calibrate(args)) => kv::calibrate::run(&args),
        args::Command::Kv(args::Kv::Evaluate(args)) => kv::evaluate::run(&args),
    })
}

fn code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    complain(&format!("{error:#}"));
    let bad_input = error.chain().any(|cause| cause.is::<complaint::BadInput>());
    ExitCode::from(if bad_input { 2 } else { 1 })
}

/// One line, whatever is in the text.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "orthant: {}", complaint::printable(text));
}

/// The first paragraph of clap's complaint, without its advice.
fn usage(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "say what to do: devices, bessel, vmf fit|score|sample, attention, kv calibrate|evaluate, \
                hamming binarize|search|evaluate or knn (--help lists the options)"
            .to_string();
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or(&text);
    format!("{} (--help lists the options)", paragraph.trim_start_matches("error: ").trim())
}
