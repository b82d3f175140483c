//! The `--probe` option: `behind=root-port,acs=on,functions=2`.

use std::str::FromStr;

use vmm::{PciPlace, ProbeConfig};

use crate::settings::{self, parse_switch};
use crate::size::Size;

/// A probe device as an option describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeOption(pub ProbeConfig);

impl FromStr for ProbeOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(ProbeConfig::default()));
        }
        let mut behind = "nothing".to_owned();
        let mut access_control = None;
        let ProbeConfig { mut functions, mut memory, .. } = ProbeConfig::default();
        for setting in settings::parse(text) {
            let (key, value) = setting?;
            let value = value.as_str();
            match key {
                "behind" => behind = value.into(),
                "acs" => access_control = Some(parse_switch(key, value)?),
                "functions" => functions = parse_functions(value)?,
                "memory" => memory = parse_memory(value)?,
                _ => {
                    return Err(format!(
                        "{key:?} is no setting of a probe device; there are behind, acs, \
                         functions and memory"
                    ));
                }
            }
        }
        let place = match behind.as_str() {
            "nothing" => PciPlace::RootComplex,
            "root-port" => {
                PciPlace::RootPort { access_control: access_control.unwrap_or_default() }
            }
            "bridge" => PciPlace::ConventionalBridge,
            _ => return Err(format!("behind={behind}: write nothing, root-port or bridge")),
        };
        if access_control.is_some() && !matches!(place, PciPlace::RootPort { .. }) {
            return Err("acs is a setting of the root port: write behind=root-port too".into());
        }
        Ok(Self(ProbeConfig { place, functions, memory }))
    }
}

fn parse_functions(value: &str) -> Result<u8, String> {
    match value.parse() {
        Ok(functions @ 1..=8) => Ok(functions),
        _ => Err(format!("functions={value}: a PCI device has 1 to 8")),
    }
}

fn parse_memory(value: &str) -> Result<u32, String> {
    let Size(bytes) = value.parse()?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() && bytes >= 4096 => Ok(bytes),
        _ => Err(format!("memory={value}: write a power of two from 4K to 2G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_and_wrong_settings_are_named() {
        let parse = |text: &str| text.parse::<ProbeOption>().map(|option| option.0);
        let root_port = |access_control| PciPlace::RootPort { access_control };
        for (text, place, functions) in [
            ("", PciPlace::RootComplex, 1),
            ("functions=8", PciPlace::RootComplex, 8),
            ("behind=root-port", root_port(false), 1),
            ("behind=root-port,acs=on,functions=2", root_port(true), 2),
            ("behind=bridge", PciPlace::ConventionalBridge, 1),
        ] {
            assert_eq!(parse(text), Ok(ProbeConfig { place, functions, memory: 64 << 10 }));
        }
        for (text, reason) in [
            ("behind=tree", "tree"),
            ("functions=9", "functions=9"),
            ("functions=0", "functions=0"),
            ("memory=3M", "memory=3M"),
            ("acs=on", "root port"),
            ("root-port", "expected key=value"),
            ("colour=blue", "colour"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }
}
