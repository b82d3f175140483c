//! Makes a kernel's directory out of its packages.

use std::fs;
use std::path::{Path, PathBuf};

use crate::FetchError;
use crate::program::Program;

/// Unpacks every package of a directory, and collects the kernel in another, new one.
pub fn unpack(packages: &Path, kernel: &Path) -> Result<(), FetchError> {
    let files = packages.join("unpacked");
    let entries = fs::read_dir(packages).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for package in entries.map_err(at(packages))? {
        Program::DPKG_DEB
            .run(Program::DPKG_DEB.command().arg("--extract").arg(package.path()).arg(&files))?;
    }
    let lacks =
        |missing| FetchError::UnknownLayout { package: packages.display().to_string(), missing };
    // Newer packages have it below usr/.
    let modules = ["lib/modules", "usr/lib/modules"].map(|place| files.join(place));
    let modules = modules.iter().find_map(|place| only_entry(place)).ok_or(lacks("modules"))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // And the newest have everything there.
    let first = |places: [PathBuf; 2]| places.into_iter().find(|place| place.exists());
    let boot = |name| files.join(format!("boot/{name}-{release}"));
    let image = first([boot("vmlinuz"), modules.join("vmlinuz")]).ok_or(lacks("vmlinuz"))?;
    let config = first([boot("config"), modules.join("config")]).ok_or(lacks("config"))?;
    let all_modules = kernel.join("modules/lib/modules");
    fs::create_dir_all(&all_modules).map_err(at(&all_modules))?;
    for (from, to) in [
        (&image, kernel.join("bzImage")),
        (&config, kernel.join("config")),
        (&modules, all_modules.join(&release)),
    ] {
        fs::rename(from, &to).map_err(at(&to))?;
    }
    let basedir = kernel.join("modules");
    Program::DEPMOD.run(Program::DEPMOD.command().arg("--basedir").arg(basedir).arg(&release))?;
    let path = kernel.join("release");
    fs::write(&path, format!("{release}\n")).map_err(at(&path))
}

/// An error about a path in the cache.
pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> FetchError {
    |source| FetchError::Cache { path: path.to_owned(), source }
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?;
    Some(entries.next()?.ok()?.path())
}
