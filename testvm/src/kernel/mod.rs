//! Kernels that guests run: an image, and what is known about it.

mod config;
mod modinfo;
mod modules;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

pub use config::{KernelConfig, Setting};
pub use modules::{ModuleError, ModuleSet, ModuleTree};
use vmm::arch::x86_64::boot::{BootError, kernel_release};

/// A kernel for a guest.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    image: PathBuf,
    release: String,
    config: Option<KernelConfig>,
    modules: Option<ModuleTree>,
    vmlinux: Option<PathBuf>,
    other_configs: BTreeMap<String, KernelConfig>,
}

/// Where a kernel's build writes what `uname -r` will print.
const BUILD_RELEASE: &str = "include/config/kernel.release";

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A part of a kernel directory is missing or unreadable.
    #[error(
        "cannot read {path}: a kernel directory has bzImage, config, release (what `uname -r` prints) and modules/lib/modules/RELEASE"
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is no kernel, or cannot be read.
    #[error("cannot use the kernel image: {0}")]
    Image(#[from] BootError),
    /// A directory without a kernel.
    #[error(
        "the directory {0} has no kernel in it: neither bzImage, config, release and modules/, nor what a kernel's build makes, arch/x86/boot/bzImage and include/config/kernel.release"
    )]
    NoKernel(PathBuf),
    /// A kernel's source.
    #[error(
        "{0} is a kernel's source that was not built there: run make in it, or name the directory that `make O=` built in"
    )]
    NotBuilt(PathBuf),
    /// Modules are given for a kernel that has its own.
    #[error("{0} has modules of its own: --modules is for a kernel image")]
    TwoModules(PathBuf),
    /// Modules are needed of a kernel that came without.
    #[error("{image} came without modules, and {} wanted: name the directory that `make modules_install` filled", list(.names))]
    NoModules {
        /// The kernel.
        image: PathBuf,
        /// The modules.
        names: Vec<String>,
    },
    /// Modules for another kernel, or none.
    #[error(
        "{directory} has no modules for Linux {release}: there is neither modules.dep nor lib/modules/{release}/modules.dep in it"
    )]
    OtherModules {
        /// Where they were looked for.
        directory: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// A module is missing or cannot be read.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

fn list(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

impl GuestKernel {
    /// Opens a directory with bzImage, config, release, modules/lib/modules/RELEASE, and, if they are to be
    /// looked at, vmlinux and kconfig/; or one in which a kernel was built.
    pub fn open(directory: &Path) -> Result<Self, KernelError> {
        let has = |name| directory.join(name).exists();
        match () {
            () if has(BUILD_RELEASE) => Self::open_build(directory),
            () if has("bzImage") || has("release") => Self::open_collected(directory),
            () if has("Kconfig") => Err(KernelError::NotBuilt(directory.to_owned())),
            () => Err(KernelError::NoKernel(directory.to_owned())),
        }
    }

    fn open_collected(directory: &Path) -> Result<Self, KernelError> {
        let image = directory.join("bzImage");
        kernel_release(&image)?;
        let release = read(&directory.join("release"))?.trim().to_owned();
        let config = KernelConfig::parse(&read(&directory.join("config"))?);
        let modules = find_modules(&directory.join("modules"), &release)?;
        let vmlinux = Some(directory.join("vmlinux")).filter(|path| path.exists());
        let other_configs = read_configs(&directory.join("kconfig"))?;
        Ok(Self {
            image,
            release,
            config: Some(config),
            modules: Some(modules),
            vmlinux,
            other_configs,
        })
    }

    fn open_build(objects: &Path) -> Result<Self, KernelError> {
        let image = objects.join("arch/x86/boot/bzImage");
        Ok(Self {
            release: kernel_release(&image)?,
            image,
            config: Some(KernelConfig::parse(&read(&objects.join(".config"))?)),
            modules: Some(ModuleTree::open_build(objects)?),
            vmlinux: Some(objects.join("vmlinux")).filter(|path| path.exists()),
            other_configs: BTreeMap::new(),
        })
    }

    /// Takes a bare image, and the modules below a directory that `make modules_install` filled.
    pub fn from_image(image: &Path, modules: Option<&Path>) -> Result<Self, KernelError> {
        let release = kernel_release(image)?;
        let modules = modules.map(|directory| find_modules(directory, &release)).transpose()?;
        Ok(Self {
            image: image.to_owned(),
            release,
            config: None,
            modules,
            vmlinux: None,
            other_configs: BTreeMap::new(),
        })
    }

    /// Opens a directory as [`Self::open`] does, or an image with its modules as [`Self::from_image`] does.
    pub fn at(path: &Path, modules: Option<&Path>) -> Result<Self, KernelError> {
        match modules {
            _ if !path.is_dir() => Self::from_image(path, modules),
            None => Self::open(path),
            Some(_) => Err(KernelError::TwoModules(path.to_owned())),
        }
    }

    /// The image: a bzImage or a vmlinux.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// What `uname -r` will print.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Its configuration, where it is known.
    pub fn config(&self) -> Option<&KernelConfig> {
        self.config.as_ref()
    }

    /// Configurations that other settings would have led to, by name.
    pub fn other_configs(&self) -> &BTreeMap<String, KernelConfig> {
        &self.other_configs
    }

    /// The kernel with its symbols, where there is one.
    pub fn vmlinux(&self) -> Option<&Path> {
        self.vmlinux.as_deref()
    }

    /// Whether a module is part of the kernel itself, as far as is known.
    pub fn has_built_in(&self, module: &str) -> bool {
        self.modules.as_ref().is_some_and(|modules| modules.is_built_in(module))
    }

    /// Those of these modules that it does not have, built in or not.
    pub fn lacking<'a>(&self, names: &[&'a str]) -> Result<Vec<&'a str>, KernelError> {
        let modules = self.known_modules(names)?;
        Ok(names.iter().copied().filter(|name| !modules.has(name)).collect())
    }

    /// These modules and whatever they need.
    pub fn modules(&self, names: &[&str]) -> Result<ModuleSet, KernelError> {
        if names.is_empty() {
            return Ok(ModuleSet::default());
        }
        Ok(self.known_modules(names)?.closure(names.iter().copied())?)
    }

    fn known_modules(&self, wanted: &[&str]) -> Result<&ModuleTree, KernelError> {
        self.modules.as_ref().ok_or_else(|| KernelError::NoModules {
            image: self.image.clone(),
            names: wanted.iter().map(|&name| name.to_owned()).collect(),
        })
    }
}

fn read(path: &Path) -> Result<String, KernelError> {
    fs::read_to_string(path)
        .map_err(|source| KernelError::Unreadable { path: path.to_owned(), source })
}

/// Modules in a directory itself, or where `make modules_install` puts them below it.
fn find_modules(directory: &Path, release: &str) -> Result<ModuleTree, KernelError> {
    let below = directory.join("lib/modules").join(release);
    [&below, directory]
        .into_iter()
        .find(|place| place.join("modules.dep").exists())
        .ok_or_else(|| KernelError::OtherModules {
            directory: directory.to_owned(),
            release: release.to_owned(),
        })
        .and_then(|place| Ok(ModuleTree::open(place)?))
}

/// Every `NAME.config` of a directory that need not exist.
fn read_configs(directory: &Path) -> Result<BTreeMap<String, KernelConfig>, KernelError> {
    let unreadable = |source| KernelError::Unreadable { path: directory.to_owned(), source };
    let mut configs = BTreeMap::new();
    if !directory.exists() {
        return Ok(configs);
    }
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "config")
            && let Some(name) = path.file_stem()
        {
            let config = KernelConfig::parse(&read(&path)?);
            configs.insert(name.to_string_lossy().into_owned(), config);
        }
    }
    Ok(configs)
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
