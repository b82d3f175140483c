//! The `--iommu` option: `virtio,bypass=off`.

use std::str::FromStr;

use vmm::IommuConfig;

use crate::settings::{self, parse_switch};

/// An IOMMU as an option describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IommuOption(pub IommuConfig);

impl FromStr for IommuOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config = IommuConfig::default();
        let (kind, settings) = text.split_once(',').unzip();
        let kind = kind.unwrap_or(text);
        if kind != "virtio" {
            return Err(format!("{kind:?} is no IOMMU; there is virtio"));
        }
        for setting in settings.into_iter().flat_map(settings::parse) {
            match setting? {
                (key @ "bypass", value) => config.bypass = parse_switch(key, &value)?,
                (key, _) => {
                    return Err(format!("{key:?} is no setting of an IOMMU; there is bypass"));
                }
            }
        }
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_bypass_the_iommu_at_first_unless_told_otherwise() {
        for (text, bypass) in [("virtio", true), ("virtio,bypass=off", false)] {
            assert_eq!(text.parse(), Ok(IommuOption(IommuConfig { bypass })));
        }
        for (text, reason) in [
            ("", "no IOMMU"),
            ("intel", "intel"),
            ("virtio,", "expected key=value"),
            ("virtio,bypass=perhaps", "perhaps"),
            ("virtio,colour=blue", "colour"),
        ] {
            let message = text.parse::<IommuOption>().unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
