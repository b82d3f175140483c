//! Kernels that guests run: an image, and what is known about it.

mod config;
mod modules;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

pub use config::{KernelConfig, Setting};
pub use modules::{ModuleError, ModuleSet, ModuleTree};
use vmm::arch::x86_64::boot::bzimage_release;

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
    /// The image is missing or unreadable.
    #[error("cannot read the kernel image {path}")]
    UnreadableImage {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that no boot loader would take for a kernel.
    #[error("{0} is not a bzImage: give the file arch/x86/boot/bzImage of a kernel's build")]
    NotAnImage(PathBuf),
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
    /// looked at, vmlinux and kconfig/.
    pub fn open(directory: &Path) -> Result<Self, KernelError> {
        let image = directory.join("bzImage");
        release_of(&image)?;
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

    /// Takes a bare image, and the modules below a directory that `make modules_install` filled.
    pub fn from_image(image: &Path, modules: Option<&Path>) -> Result<Self, KernelError> {
        let release = release_of(image)?;
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

    /// Opens a kernel directory as [`Self::open`] does, or an image with its modules as [`Self::from_image`]
    /// does.
    pub fn at(path: &Path, modules: Option<&Path>) -> Result<Self, KernelError> {
        if path.is_dir() { Self::open(path) } else { Self::from_image(path, modules) }
    }

    /// The bzImage.
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

    /// These modules and whatever they need.
    pub fn modules(&self, names: &[&str]) -> Result<ModuleSet, KernelError> {
        match &self.modules {
            Some(modules) => Ok(modules.closure(names.iter().copied())?),
            None if names.is_empty() => Ok(ModuleSet::default()),
            None => Err(KernelError::NoModules {
                image: self.image.clone(),
                names: names.iter().map(|&name| name.to_owned()).collect(),
            }),
        }
    }
}

fn read(path: &Path) -> Result<String, KernelError> {
    fs::read_to_string(path)
        .map_err(|source| KernelError::Unreadable { path: path.to_owned(), source })
}

fn release_of(image: &Path) -> Result<String, KernelError> {
    let bytes = fs::read(image)
        .map_err(|source| KernelError::UnreadableImage { path: image.to_owned(), source })?;
    bzimage_release(&bytes).ok_or_else(|| KernelError::NotAnImage(image.to_owned()))
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
mod tests {
    use tempfile::TempDir;

    use super::*;

    const RELEASE: &str = "6.12.0-test";

    fn image() -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.12.0-test (me@");
        image
    }

    fn directory() -> TempDir {
        let directory = TempDir::new().unwrap();
        let modules = directory.path().join("modules/lib/modules").join(RELEASE);
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir(directory.path().join("kconfig")).unwrap();
        for (path, contents) in [
            ("bzImage", image()),
            ("config", b"CONFIG_VIRTIO_MEM=m\n".to_vec()),
            ("release", RELEASE.into()),
            ("kconfig/devmem-off.config", b"CONFIG_VIRTIO_MEM=y\n".to_vec()),
        ] {
            fs::write(directory.path().join(path), contents).unwrap();
        }
        fs::write(modules.join("modules.dep"), "virtio_mem.ko:\n").unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/virtio.ko\n").unwrap();
        fs::write(modules.join("virtio_mem.ko"), "image").unwrap();
        directory
    }

    #[test]
    fn a_kernel_is_opened_from_its_directory() {
        let directory = directory();
        let kernel = GuestKernel::open(directory.path()).unwrap();
        assert_eq!(kernel.release(), RELEASE);
        assert_eq!(kernel.config().unwrap().setting("VIRTIO_MEM"), &Setting::Module);
        assert!(kernel.other_configs()["devmem-off"].is_on("VIRTIO_MEM"));
        assert!(kernel.has_built_in("virtio") && kernel.vmlinux().is_none());
        assert_eq!(kernel.modules(&["virtio_mem"]).unwrap().images["virtio_mem"][..], b"image"[..]);
    }

    #[test]
    fn a_missing_part_is_named() {
        let directory = directory();
        fs::remove_file(directory.path().join("config")).unwrap();
        let error = GuestKernel::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("/config"), "{error}");
    }

    #[test]
    fn a_bare_image_names_its_release_and_finds_its_modules() {
        let directory = directory();
        let (image, modules) = (directory.path().join("bzImage"), directory.path().join("modules"));
        let bare = GuestKernel::from_image(&image, None).unwrap();
        assert_eq!(bare.release(), RELEASE);
        assert!(bare.modules(&[]).is_ok());
        let error = bare.modules(&["virtio_mem"]).unwrap_err();
        assert!(error.to_string().contains("virtio_mem is wanted"), "{error}");
        let kernel = GuestKernel::from_image(&image, Some(&modules)).unwrap();
        assert!(kernel.modules(&["virtio_mem"]).is_ok());
    }

    #[test]
    fn a_file_that_is_not_a_bzimage_is_refused() {
        let directory = directory();
        let path = directory.path().join("config");
        assert!(matches!(GuestKernel::from_image(&path, None), Err(KernelError::NotAnImage(_))));
    }
}
