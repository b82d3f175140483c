//! The list of the modules in an initramfs, `/modules/index`: written on the host, read by the agent.
//!
//! One line a module: its name, a colon, and in load order the names of the modules that must be
//! loaded before it; `built-in` instead where the kernel holds the module already.

use std::{collections::BTreeMap, fmt, str::FromStr};

const BUILT_IN: &str = "built-in";

/// The modules of an initramfs by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleIndex(pub BTreeMap<String, ModuleEntry>);

/// How to load a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleEntry {
    /// Nothing: the kernel was built with it.
    BuiltIn,
    /// Load these in this order, then `/modules/NAME.ko`.
    Loadable {
        /// Names of other modules of the index.
        dependencies: Vec<String>,
    },
}

/// A line that cannot be parsed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid line {0:?} in the module index: expected NAME: built-in, or NAME: MODULE...")]
pub struct ModuleIndexError(String);

/// The name that the kernel uses for a module: dashes and underscores are the same.
pub fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

impl fmt::Display for ModuleIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, entry) in &self.0 {
            match entry {
                ModuleEntry::BuiltIn => writeln!(f, "{name}: {BUILT_IN}")?,
                ModuleEntry::Loadable { dependencies } => {
                    writeln!(f, "{name}: {}", dependencies.join(" "))?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for ModuleIndex {
    type Err = ModuleIndexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entry = |line: &str| {
            let (name, rest) =
                line.split_once(':').ok_or_else(|| ModuleIndexError(line.to_owned()))?;
            let entry = match rest.trim() {
                BUILT_IN => ModuleEntry::BuiltIn,
                names => ModuleEntry::Loadable {
                    dependencies: names.split_whitespace().map(str::to_owned).collect(),
                },
            };
            Ok((name.to_owned(), entry))
        };
        text.lines().map(entry).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_parsed_as_it_was_written() {
        let loadable = |names: &[&str]| ModuleEntry::Loadable {
            dependencies: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let index = ModuleIndex(BTreeMap::from([
            ("virtio".to_owned(), loadable(&[])),
            ("virtio_mem".to_owned(), loadable(&["virtio", "virtio_ring"])),
            ("virtio_pci".to_owned(), ModuleEntry::BuiltIn),
        ]));
        let text = index.to_string();
        assert_eq!(text, "virtio: \nvirtio_mem: virtio virtio_ring\nvirtio_pci: built-in\n");
        assert_eq!(text.parse(), Ok(index));
    }

    #[test]
    fn the_error_names_a_line_that_cannot_be_parsed() {
        let error = "virtio_mem\n".parse::<ModuleIndex>().unwrap_err();
        assert!(error.to_string().contains("virtio_mem"));
    }
}
