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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A package with these files, in a directory of its own.
    fn package(files: &[&str]) -> TempDir {
        let directory = TempDir::new().unwrap();
        let tree = directory.path().join("tree");
        let control = "Package: linux-image\nVersion: 1\nArchitecture: all\n\
                       Maintainer: nobody <nobody@example.org>\nDescription: Linux\n";
        for (path, contents) in
            [("DEBIAN/control", control)].into_iter().chain(files.iter().map(|&path| (path, path)))
        {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        let packages = directory.path().join("packages");
        fs::create_dir(&packages).unwrap();
        let mut build = Program::DPKG_DEB.command();
        build.arg("--build").arg(&tree).arg(packages.join("linux-image.deb"));
        Program::DPKG_DEB.run(&mut build).unwrap();
        directory
    }

    #[test]
    fn a_kernel_is_collected_from_either_layout() {
        for [image, config, module] in [
            ["boot/vmlinuz-6.1", "boot/config-6.1", "lib/modules/6.1/modules.order"],
            ["boot/vmlinuz-6.1", "boot/config-6.1", "usr/lib/modules/6.1/modules.order"],
            [
                "usr/lib/modules/6.1/vmlinuz",
                "usr/lib/modules/6.1/config",
                "usr/lib/modules/6.1/modules.order",
            ],
        ] {
            let directory = package(&[image, config, module]);
            let kernel = directory.path().join("kernel");
            unpack(&directory.path().join("packages"), &kernel).unwrap();
            for (path, contents) in [
                ("bzImage", image),
                ("config", config),
                ("release", "6.1\n"),
                ("modules/lib/modules/6.1/modules.order", module),
            ] {
                assert_eq!(fs::read_to_string(kernel.join(path)).unwrap(), contents);
            }
            assert!(kernel.join("modules/lib/modules/6.1/modules.dep").exists());
        }
    }

    #[test]
    fn a_package_without_a_kernel_is_refused_with_what_it_lacks() {
        for (files, missing) in [
            (&["etc/other"][..], "no modules"),
            (&["lib/modules/6.1/modules.order", "boot/config-6.1"], "no vmlinuz"),
            (&["lib/modules/6.1/modules.order", "boot/vmlinuz-6.1"], "no config"),
        ] {
            let directory = package(files);
            let result = unpack(&directory.path().join("packages"), &directory.path().join("k"));
            let message = result.unwrap_err().to_string();
            assert!(message.contains(missing), "{message:?} should say {missing:?}");
        }
        let directory = package(&[]);
        let packages = directory.path().join("packages");
        fs::write(packages.join("linux-image.deb"), "no package").unwrap();
        let error = unpack(&packages, &directory.path().join("kernel")).unwrap_err();
        assert!(error.to_string().contains("dpkg-deb failed"), "{error}");
    }
}
