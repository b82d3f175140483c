//! The `--virtio-mem` option: `size=8G,requested=1G,block-size=2M,backing=hugetlb-2m`.

use std::num::NonZeroU64;
use std::str::FromStr;

use vmm::MemoryDeviceConfig;
use vmm::memory::backing::Backing;
use vmm::memory::host::HostMemoryConfig;
use vmm::violations::ViolationPolicy;

use crate::host_memory::{self, parse_node};
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
        let mut busy_every = None;
        let mut on_violation = ViolationPolicy::default();
        for setting in settings::parse(text) {
            let (key, value) = setting?;
            let value = value.as_str();
            match key {
                "size" => size = Some(value.parse::<Size>()?),
                "requested" => requested = value.parse()?,
                "block-size" => block_size = value.parse()?,
                "node" => node = Some(parse_node(key, value)?),
                "on-violation" => on_violation = parse_policy(value)?,
                "busy-every" => busy_every = Some(parse_count(key, value)?),
                "insist-inaccessible" => insist_on_inaccessible = parse_switch(key, value)?,
                _ if host_memory::set(&mut memory, key, value)? => {}
                _ => {
                    return Err(format!(
                        "{key:?} is no setting of a virtio-mem device; there are size, requested, \
                         block-size, node, insist-inaccessible, busy-every, on-violation, {}",
                        host_memory::KEYS
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
            busy_every,
            on_violation,
        }))
    }
}

fn parse_policy(value: &str) -> Result<ViolationPolicy, String> {
    match value {
        "report" => Ok(ViolationPolicy::Report),
        "stop" => Ok(ViolationPolicy::Stop),
        "machine-check" => Ok(ViolationPolicy::MachineCheck),
        "ignore" => Ok(ViolationPolicy::Ignore),
        _ => Err(format!(
            "{value:?} is no answer to a violation; there are report, stop, machine-check and ignore"
        )),
    }
}

fn parse_count(key: &str, value: &str) -> Result<NonZeroU64, String> {
    value.parse().map_err(|_| format!("{key}={value}: want a number from 1 on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults_and_wrong_ones_are_named() {
        let VirtioMemOption(config) = "size=8G".parse().unwrap();
        assert_eq!((config.size, config.requested, config.block_size), (8 << 30, 0, 2 << 20));
        let VirtioMemOption(config) =
            "size=1G,requested=2M,block-size=1M,backing=memfd,insist-inaccessible=on,busy-every=7"
                .parse()
                .unwrap();
        assert_eq!((config.requested, config.block_size), (2 << 20, 1 << 20));
        assert_eq!((config.memory.backing, config.insist_on_inaccessible), (Backing::Memfd, true));
        assert_eq!(config.busy_every, NonZeroU64::new(7));
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
        let VirtioMemOption(config) = "size=1G,on-violation=machine-check".parse().unwrap();
        assert_eq!(config.on_violation, ViolationPolicy::MachineCheck);
        for (text, reason) in [
            ("", "expected key=value"),
            ("requested=1G", "needs a size"),
            ("size=1Q", "1Q"),
            ("size=1G,colour=blue", "colour"),
            ("size=1G,backing=stone", "stone"),
            ("size=1G,on-violation=panic", "report, stop, machine-check and ignore"),
            ("size=1G,node=-1", "node=-1"),
            ("size=1G,busy-every=0", "busy-every=0"),
        ] {
            let message = text.parse::<VirtioMemOption>().unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
