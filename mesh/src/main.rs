//! The program `plexus`: calls the command line and maps its errors to exit codes 0 (done), 1 (failed), 2 (usage).

use std::process::ExitCode;

fn main() -> ExitCode {
    match mesh::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            ExitCode::from(error.exit_code())
        }
    }
}
