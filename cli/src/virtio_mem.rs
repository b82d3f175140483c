//! The `--virtio-mem` option: `size=8G,requested=1G,block-size=2M,backing=hugetlb-2m`.

use std::str::FromStr;

use vmm::MemoryDeviceConfig;
use vmm::memory::backing::{Backing, HugePageSize};
use vmm::memory::host::HostMemoryConfig;

use crate::settings::{self, parse_switch};
use crate::size::Size;

/// A virtio-mem device as an option describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioMemOption(pub MemoryDeviceConfig);

impl FromStr for VirtioMemOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut size = None;
        let mut requested = Size(0);
        let mut block_size = Size(MemoryDeviceConfig::DEFAULT_BLOCK_SIZE);
        let mut memory = HostMemoryConfig::from(Backing::default());
        let mut node = None;
        let mut insist_on_inaccessible = false;
        for setting in settings::parse(text) {
            let (key, value) = setting?;
            match key {
                "size" => size = Some(value.parse::<Size>()?),
                "requested" => requested = value.parse()?,
                "block-size" => block_size = value.parse()?,
                "backing" => memory.backing = parse_backing(value)?,
                "huge-pages" => memory.huge_pages = parse_switch(key, value)?,
                "prealloc" => memory.prealloc = parse_switch(key, value)?,
                "host-node" => memory.host_node = Some(parse_node(key, value)?),
                "node" => node = Some(parse_node(key, value)?),
                "insist-inaccessible" => insist_on_inaccessible = parse_switch(key, value)?,
                _ => {
                    return Err(format!(
                        "{key:?} is no setting of a virtio-mem device; there are size, requested, \
                         block-size, backing, huge-pages, prealloc, host-node, node and \
                         insist-inaccessible"
                    ));
                }
            }
        }
        let size = size.ok_or("a virtio-mem device needs a size, as in size=8G")?;
        Ok(Self(MemoryDeviceConfig {
            size: size.0,
            requested: requested.0,
            block_size: block_size.0,
            memory,
            node,
            insist_on_inaccessible,
        }))
    }
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

fn parse_node(key: &str, value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("{key}={value}: a NUMA node is a number up to 65535"))
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
        assert_eq!((config.memory.backing, config.insist_on_inaccessible), (Backing::Memfd, true));
        let VirtioMemOption(config) =
            "size=1G,backing=file:/dev/shm/a=b,huge-pages=off,prealloc=on,host-node=0,node=3"
                .parse()
                .unwrap();
        let memory = HostMemoryConfig {
            backing: Backing::File("/dev/shm/a=b".into()),
            huge_pages: false,
            prealloc: true,
            host_node: Some(0),
        };
        assert_eq!((config.memory, config.node), (memory, Some(3)));
        for (text, reason) in [
            ("", "no setting"),
            ("requested=1G", "needs a size"),
            ("size=1Q", "1Q"),
            ("size=1G,colour=blue", "colour"),
            ("size=1G,backing=stone", "stone"),
            ("size=1G,backing=hugetlb-4k", "hugetlb-2m"),
            ("size=1G,backing=file:", "file:PATH"),
            ("size=1G,prealloc=yes", "on or off"),
            ("size=1G,node=-1", "node=-1"),
            ("size=1G,host-node=65536", "host-node=65536"),
        ] {
            let message = text.parse::<VirtioMemOption>().unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
