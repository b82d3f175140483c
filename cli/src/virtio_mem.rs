//! The `--virtio-mem` option: `size=8G,requested=1G,block-size=2M,backing=memfd`.

use std::str::FromStr;

use vmm::MemoryDeviceConfig;
use vmm::memory::host::Backing;

use crate::settings::{self, parse_switch};
use crate::size::Size;

/// A virtio-mem device as an option describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMemOption(pub MemoryDeviceConfig);

impl FromStr for VirtioMemOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut size = None;
        let mut requested = Size(0);
        let mut block_size = Size(MemoryDeviceConfig::DEFAULT_BLOCK_SIZE);
        let mut backing = Backing::default();
        let mut insist_on_inaccessible = false;
        for setting in settings::parse(text) {
            let (key, value) = setting?;
            match key {
                "size" => size = Some(value.parse::<Size>()?),
                "requested" => requested = value.parse()?,
                "block-size" => block_size = value.parse()?,
                "backing" => backing = parse_backing(value)?,
                "insist-inaccessible" => insist_on_inaccessible = parse_switch(key, value)?,
                _ => {
                    return Err(format!(
                        "{key:?} is no setting of a virtio-mem device; there are size, requested, \
                         block-size, backing and insist-inaccessible"
                    ));
                }
            }
        }
        let size = size.ok_or("a virtio-mem device needs a size, as in size=8G")?;
        Ok(Self(MemoryDeviceConfig {
            size: size.0,
            requested: requested.0,
            block_size: block_size.0,
            backing,
            insist_on_inaccessible,
        }))
    }
}

fn parse_backing(value: &str) -> Result<Backing, String> {
    match value {
        "anonymous" => Ok(Backing::Anonymous),
        "memfd" => Ok(Backing::Memfd),
        _ => Err(format!("{value:?} is no backing; there are anonymous and memfd")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults_and_wrong_ones_are_named() {
        let VirtioMemOption(config) = "size=8G".parse().unwrap();
        assert_eq!((config.size, config.requested, config.block_size), (8 << 30, 0, 2 << 20));
        let VirtioMemOption(config) =
            "size=1G,requested=2M,block-size=1M,backing=memfd,insist-inaccessible=on"
                .parse()
                .unwrap();
        assert_eq!((config.requested, config.block_size), (2 << 20, 1 << 20));
        assert_eq!((config.backing, config.insist_on_inaccessible), (Backing::Memfd, true));
        for (text, reason) in [
            ("", "no setting"),
            ("requested=1G", "needs a size"),
            ("size=1Q", "1Q"),
            ("size=1G,colour=blue", "colour"),
            ("size=1G,backing=stone", "stone"),
        ] {
            let message = text.parse::<VirtioMemOption>().unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
