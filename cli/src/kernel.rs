//! `moat kernel`, and the kernels of other commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use comfy_table::{Table, presets};
use kernels::{DebianKernel, FindError, KernelCache};
use serde::Serialize;
use testvm::kernel::GuestKernel;

use crate::arguments::{KernelArguments, KernelCommand};
use crate::messages::print_message;
use crate::output::answer;

pub fn run(command: &KernelCommand) -> anyhow::Result<ExitCode> {
    let cache = KernelCache::of_user()?;
    match command {
        KernelCommand::List(arguments) if arguments.json => {
            answer(serde_json::to_string_pretty(&list(&cache))?)?;
        }
        KernelCommand::List(_) => print_for_people(&list(&cache))?,
        KernelCommand::Path(KernelArguments { name, mirror }) => {
            answer(cache.path(name, mirror.as_deref(), &say)?.display())?;
        }
        KernelCommand::Fetch(KernelArguments { name, mirror }) => {
            cache.fetch(name, mirror.as_deref(), &say)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The kernel that `--kernel` and `--modules` name.
pub fn find(asked: Option<&Path>, modules: Option<&Path>) -> Result<GuestKernel, FindError> {
    kernels::find_kernel(asked, modules, &say)
}

/// The image of a kernel that is only to boot.
pub fn find_image(asked: &Path) -> Result<PathBuf, FindError> {
    kernels::find_image(asked, &say)
}

fn say(line: &str) {
    print_message(line);
}

/// A row of the list.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    description: &'static str,
    /// What `uname -r` will print, if it has been fetched.
    release: Option<String>,
    /// Where it is, likewise.
    directory: Option<PathBuf>,
}

fn list(cache: &KernelCache) -> Vec<Row> {
    let row = |kernel: &'static DebianKernel| {
        let (directory, release) = cache.get(kernel).unzip();
        Row { name: kernel.name, description: kernel.description, release, directory }
    };
    DebianKernel::ALL.iter().map(row).collect()
}

fn print_for_people(rows: &[Row]) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["name", "what it is", "fetched"]);
    for row in rows {
        table.add_row([row.name, row.description, row.release.as_deref().unwrap_or("-")]);
    }
    answer(table)
}
