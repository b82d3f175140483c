//! A kernel's configuration: what Kconfig made of every symbol.

use std::collections::HashMap;

/// A `.config` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelConfig {
    settings: HashMap<String, Setting>,
}

/// What a symbol is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Built in.
    Yes,
    /// A module.
    Module,
    /// Off, or not there at all.
    No,
    /// A number or a string, as it is written.
    Value(String),
}

impl KernelConfig {
    /// Reads the text of a `.config`.
    pub fn parse(text: &str) -> Self {
        let setting = |line: &str| {
            let (symbol, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            let setting = match value {
                "y" => Setting::Yes,
                "m" => Setting::Module,
                other => Setting::Value(other.to_owned()),
            };
            Some((symbol.to_owned(), setting))
        };
        Self { settings: text.lines().filter_map(setting).collect() }
    }

    /// What a symbol, named without `CONFIG_`, is set to.
    pub fn setting(&self, symbol: &str) -> &Setting {
        self.settings.get(symbol).unwrap_or(&Setting::No)
    }

    /// Whether a symbol is on, built in or as a module.
    pub fn is_on(&self, symbol: &str) -> bool {
        matches!(self.setting(symbol), Setting::Yes | Setting::Module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_looked_up_by_name() {
        let config = KernelConfig::parse(
            "CONFIG_DEVMEM=y\nCONFIG_VIRTIO_MEM=m\n# CONFIG_IO_STRICT_DEVMEM is not set\nCONFIG_HZ=250\n",
        );
        assert_eq!(config.setting("DEVMEM"), &Setting::Yes);
        assert_eq!(config.setting("VIRTIO_MEM"), &Setting::Module);
        assert_eq!(config.setting("IO_STRICT_DEVMEM"), &Setting::No);
        assert_eq!(config.setting("HZ"), &Setting::Value("250".to_owned()));
        assert!(config.is_on("VIRTIO_MEM") && !config.is_on("NO_SUCH_SYMBOL"));
    }
}
