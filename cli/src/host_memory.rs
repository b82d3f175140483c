//! How guest memory is had from the host: settings of `--virtio-mem`, and those of `--memory-backing`.

use std::str::FromStr;

use vmm::memory::backing::{Backing, HugePageSize};
use vmm::memory::host::HostMemoryConfig;

use crate::settings::{self, parse_switch};

/// The settings that there are.
pub const KEYS: &str = "backing, huge-pages, prealloc and host-node";

/// Changes a setting of `config`. False if `key` is none of them.
pub fn set(config: &mut HostMemoryConfig, key: &str, value: &str) -> Result<bool, String> {
    match key {
        "backing" => config.backing = parse_backing(value)?,
        "huge-pages" => config.huge_pages = parse_switch(key, value)?,
        "prealloc" => config.prealloc = parse_switch(key, value)?,
        "host-node" => config.host_node = Some(parse_node(key, value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// The number of a NUMA node.
pub fn parse_node(key: &str, value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("{key}={value}: a NUMA node is a number up to 65535"))
}

fn parse_backing(value: &str) -> Result<Backing, String> {
    match value.split_once(':') {
        None if value == "anonymous" => Ok(Backing::Anonymous),
        None if value == "memfd" => Ok(Backing::Memfd),
        None if value == "hugetlb-2m" => Ok(Backing::Hugetlb(HugePageSize::Size2M)),
        None if value == "hugetlb-1g" => Ok(Backing::Hugetlb(HugePageSize::Size1G)),
        Some(("file", path)) if !path.is_empty() => Ok(Backing::File(path.into())),
        _ => Err(format!(
            "{value:?} is no backing; there are anonymous, memfd, hugetlb-2m, hugetlb-1g and \
             file:PATH"
        )),
    }
}

/// What RAM is made of, as an option describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamOption(pub HostMemoryConfig);

impl FromStr for RamOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config = HostMemoryConfig::from(Backing::default());
        for setting in settings::parse(text) {
            let (key, value) = setting?;
            if !set(&mut config, key, &value)? {
                return Err(format!("{key:?} is no setting of RAM; there are {KEYS}"));
            }
        }
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_had_as_the_settings_say_and_wrong_ones_are_named() {
        let backing = Backing::Hugetlb(HugePageSize::Size1G);
        let expected = HostMemoryConfig { host_node: Some(1), ..backing.into() };
        assert_eq!("backing=hugetlb-1g,host-node=1".parse(), Ok(RamOption(expected)));
        for (text, reason) in [
            ("", "expected key=value"),
            ("size=1G", "size"),
            ("backing=stone", "stone"),
            ("backing=hugetlb-4k", "hugetlb-2m"),
            ("backing=file:", "file:PATH"),
            ("prealloc=yes", "on or off"),
            ("host-node=65536", "host-node=65536"),
        ] {
            let message = text.parse::<RamOption>().unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
