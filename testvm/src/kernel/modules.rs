//! A kernel's modules on the host: which there are, what they need, and their images.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use agent_protocol::{ModuleEntry, ModuleIndex, module_name};
use liblzma::read::XzDecoder;

use super::modinfo;

/// Why modules could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file could not be read.
    #[error(
        "cannot read {path}: depmod makes modules.dep, and the kernel's build all else that has to do with modules"
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A module that the kernel was built without.
    #[error(
        "{directory} has no module {name}, and it is not built in: turn it on in the kernel's configuration"
    )]
    Unknown {
        /// Which.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A compression other than xz.
    #[error(
        "{0} is neither a .ko nor a .ko.xz: unpack it, or build the kernel with MODULE_COMPRESS off"
    )]
    Compressed(PathBuf),
    /// A file that is no module.
    #[error("{0} is damaged: it has no list of the modules that it needs (depends= in .modinfo)")]
    Damaged(PathBuf),
}

/// The modules of a kernel: those below `lib/modules/RELEASE`, or in the directory of a build.
#[derive(Clone, Debug)]
pub struct ModuleTree {
    directory: PathBuf,
    loadable: HashMap<String, Loadable>,
    built_in: HashSet<String>,
}

#[derive(Clone, Debug)]
struct Loadable {
    path: PathBuf,
    /// As depmod lists them, in load order. Without, the module itself lists those that it needs directly.
    listed: Option<Vec<String>>,
    /// Read once, for many guests have the same modules.
    image: OnceLock<Arc<[u8]>>,
}

/// Modules with all that they need, ready for an initramfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleSet {
    /// How to load them.
    pub index: ModuleIndex,
    /// Their images, uncompressed, by name.
    pub images: BTreeMap<String, Arc<[u8]>>,
}

impl ModuleTree {
    /// Reads what depmod and the kernel's build left in a directory.
    pub fn open(directory: &Path) -> Result<Self, ModuleError> {
        let read = |name| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|source| ModuleError::Unreadable { path, source })
        };
        let loadable = read("modules.dep")?
            .lines()
            .filter_map(|line| {
                let (path, needed) = line.split_once(':')?;
                // depmod writes what is needed first last.
                let listed = Some(needed.split_whitespace().rev().map(name_of).collect());
                Some((name_of(path), Loadable::new(directory.join(path), listed)))
            })
            .collect();
        let built_in = read("modules.builtin")?.lines().map(name_of).collect();
        Ok(Self { directory: directory.to_owned(), loadable, built_in })
    }

    /// Reads what a kernel's build left in the directory of its objects, without `make modules_install`.
    pub fn open_build(objects: &Path) -> Result<Self, ModuleError> {
        let read = |name| match fs::read_to_string(objects.join(name)) {
            // A kernel may have no modules.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(ModuleError::Unreadable { path: objects.join(name), source }),
            Ok(text) => Ok(text),
        };
        // Since Linux 6.3 these are the objects that modules are made of.
        let path_of = |line: &str| objects.join(line).with_extension("ko");
        let loadable = read("modules.order")?
            .lines()
            .map(|line| (name_of(line), Loadable::new(path_of(line), None)))
            .collect();
        let built_in = read("modules.builtin")?.lines().map(name_of).collect();
        Ok(Self { directory: objects.to_owned(), loadable, built_in })
    }

    /// Whether a module is part of the kernel itself.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&module_name(name))
    }

    /// Whether there is a module of this name, built in or not.
    pub fn has(&self, name: &str) -> bool {
        self.loadable.contains_key(&module_name(name)) || self.is_built_in(name)
    }

    /// These modules and whatever they need.
    pub fn closure<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<ModuleSet, ModuleError> {
        let mut set = ModuleSet::default();
        let mut wanted: Vec<String> = names.into_iter().map(module_name).collect();
        while let Some(name) = wanted.pop() {
            if set.index.0.contains_key(&name) {
                continue;
            }
            let entry = match self.loadable.get(&name) {
                Some(module) => {
                    set.images.insert(name.clone(), module.image()?);
                    let mut dependencies = Vec::new();
                    self.add_needed(module, &mut HashSet::new(), &mut dependencies)?;
                    wanted.extend(dependencies.iter().cloned());
                    ModuleEntry::Loadable { dependencies }
                }
                None if self.built_in.contains(&name) => ModuleEntry::BuiltIn,
                None => {
                    return Err(ModuleError::Unknown { name, directory: self.directory.clone() });
                }
            };
            set.index.0.insert(name, entry);
        }
        Ok(set)
    }

    /// Adds what a module needs, directly or not, in load order.
    fn add_needed(
        &self,
        module: &Loadable,
        seen: &mut HashSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        for name in module.needs()? {
            if seen.insert(name.clone()) {
                if let Some(needed) = self.loadable.get(&name) {
                    self.add_needed(needed, seen, order)?;
                }
                order.push(name);
            }
        }
        Ok(())
    }
}

/// `kernel/drivers/virtio/virtio-mem.ko.xz` is module `virtio_mem`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    module_name(file.split('.').next().unwrap_or(file))
}

impl Loadable {
    fn new(path: PathBuf, listed: Option<Vec<String>>) -> Self {
        Self { path, listed, image: OnceLock::new() }
    }

    /// What it needs, in load order: all of it, or what it needs directly.
    fn needs(&self) -> Result<Vec<String>, ModuleError> {
        match &self.listed {
            Some(names) => Ok(names.clone()),
            None => modinfo::dependencies(&self.image()?)
                .map(|names| names.iter().map(|name| module_name(name)).collect())
                .ok_or_else(|| ModuleError::Damaged(self.path.clone())),
        }
    }

    fn image(&self) -> Result<Arc<[u8]>, ModuleError> {
        if let Some(image) = self.image.get() {
            return Ok(image.clone());
        }
        let image = read_image(&self.path)?.into();
        Ok(self.image.get_or_init(|| image).clone())
    }
}

fn read_image(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let unreadable = |source| ModuleError::Unreadable { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(unreadable)?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(bytes),
        Some("xz") => {
            let mut image = Vec::new();
            XzDecoder::new(bytes.as_slice()).read_to_end(&mut image).map_err(unreadable)?;
            Ok(image)
        }
        _ => Err(ModuleError::Compressed(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use liblzma::write::XzEncoder;
    use tempfile::TempDir;

    use super::*;

    fn tree() -> TempDir {
        let directory = TempDir::new().unwrap();
        let write =
            |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
        write(
            "modules.dep",
            b"virtio-mem.ko.xz: virtio_ring.ko virtio.ko\nvirtio_ring.ko: virtio.ko\nvirtio.ko:\nnet.ko.zst:\n",
        );
        write("modules.builtin", b"kernel/drivers/virtio/virtio-pci.ko\n");
        write("virtio.ko", b"virtio's image");
        write("virtio_ring.ko", b"virtio_ring's image");
        let mut packed = XzEncoder::new(Vec::new(), 1);
        packed.write_all(b"virtio_mem's image").unwrap();
        write("virtio-mem.ko.xz", &packed.finish().unwrap());
        directory
    }

    #[test]
    fn a_module_comes_unpacked_with_what_it_needs_in_load_order() {
        let directory = tree();
        let set = ModuleTree::open(directory.path()).unwrap().closure(["virtio-mem"]).unwrap();
        let dependencies = vec!["virtio".to_owned(), "virtio_ring".to_owned()];
        assert_eq!(set.index.0["virtio_mem"], ModuleEntry::Loadable { dependencies });
        assert_eq!(&*set.images["virtio_mem"], b"virtio_mem's image");
        assert_eq!(&*set.images["virtio"], b"virtio's image");
        assert_eq!(set.images.len(), 3);
    }

    #[test]
    fn a_built_in_module_needs_no_image() {
        let directory = tree();
        let modules = ModuleTree::open(directory.path()).unwrap();
        let set = modules.closure(["virtio_pci"]).unwrap();
        assert_eq!(set.index.0["virtio_pci"], ModuleEntry::BuiltIn);
        assert!(set.images.is_empty() && modules.is_built_in("virtio-pci"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let directory = tree();
        let modules = ModuleTree::open(directory.path()).unwrap();
        let error = modules.closure(["virtio_iommu"]).unwrap_err();
        assert!(error.to_string().contains("no module virtio_iommu"));
        fs::write(directory.path().join("net.ko.zst"), "").unwrap();
        let error = modules.closure(["net"]).unwrap_err();
        assert!(matches!(error, ModuleError::Compressed(_)));
        let error = ModuleTree::open(&directory.path().join("absent")).unwrap_err();
        assert!(error.to_string().contains("modules.dep"));
    }
}
