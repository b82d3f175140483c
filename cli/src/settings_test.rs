use std::num::NonZeroU64;

use clap::{CommandFactory, Parser};
use vmm::memory::backing::Backing;
use vmm::memory::host::HostMemoryConfig;
use vmm::violations::ViolationPolicy;
use vmm::{IommuConfig, IommuKind, MachineSpec, MemoryDeviceConfig, PciPlace, ProbeConfig, Size};

use super::*;
use crate::arguments::{Arguments, Command, SerialTarget};

#[test]
fn a_comma_in_a_value_is_written_twice() {
    for (text, expected) in [
        ("a=1,b=2", vec!["a=1", "b=2"]),
        ("a=x,,y,b=,,,c=z,,", vec!["a=x,,y", "b=,,", "c=z,,"]),
        ("a=1,", vec!["a=1", ""]),
    ] {
        assert_eq!(split_at_single_commas(text), expected);
    }
    let memory: HostMemoryConfig = parse("backing=file:/tmp/a,,b=c,prealloc=on").unwrap();
    assert_eq!(memory.backing, Backing::File("/tmp/a,b=c".into()));
    for wrong in ["", "backing", "prealloc=on,", "prealloc=on,b", ",prealloc=on"] {
        assert_refused::<HostMemoryConfig>(&[(wrong, "expected key=value")]);
    }
}

#[track_caller]
fn assert_refused<T: Settings>(wrong: &[(&str, &str)]) {
    for (text, reason) in wrong {
        let message = parse::<T>(text).err().expect(text);
        assert!(message.contains(reason), "{message:?} should say {reason:?}");
    }
}

#[test]
fn a_virtio_mem_device_has_defaults_and_wrong_settings_are_named() {
    let device = |text: &str| parse::<MemoryDeviceConfig>(text).unwrap();
    assert_eq!(device("size=8G"), MemoryDeviceConfig::new(8 << 30));
    let expected = MemoryDeviceConfig {
        requested: Size(2 << 20),
        block_size: Size(1 << 20),
        memory: HostMemoryConfig {
            backing: Backing::File("/dev/shm/a=b".into()),
            huge_pages: false,
            prealloc: true,
            host_node: Some(0),
        },
        node: Some(3),
        insist_on_inaccessible: true,
        busy_every: NonZeroU64::new(7),
        on_violation: ViolationPolicy::MachineCheck,
        ..MemoryDeviceConfig::new(1 << 30)
    };
    let text = "size=1G,requested=2M,block-size=1M,backing=file:/dev/shm/a=b,huge-pages=off,\
                prealloc=on,host-node=0,node=3,insist-inaccessible=on,busy-every=7,\
                on-violation=machine-check";
    assert_eq!(device(text), expected);
    for (name, backing) in [
        ("anonymous", Backing::Anonymous),
        ("memfd", Backing::Memfd),
        ("hugetlb-2m", Backing::Hugetlb2M),
        ("hugetlb-1g", Backing::Hugetlb1G),
    ] {
        assert_eq!(device(&format!("size=1G,backing={name}")).memory, backing.into());
    }
    assert_refused::<MemoryDeviceConfig>(&[
        ("", "expected key=value"),
        ("requested=1G", "missing size: specify size=SIZE"),
        ("size=1Q", "\"1Q\""),
        ("size=", "invalid size \"\""),
        ("size=1G,colour=blue", "unknown key \"colour\": expected size, requested, block-size"),
        (
            "size=1G,colour=blue",
            "block-size, backing, huge-pages, prealloc, host-node, node, insist-inaccessible",
        ),
        ("size=1G,size=2G", "size is given twice"),
        ("size=1G,memory=memfd", "unknown key \"memory\""),
        ("size=1G,backing=stone", "invalid backing=stone: expected anonymous, memfd"),
        ("size=1G,backing=hugetlb-4k", "hugetlb-2m"),
        ("size=1G,backing=file:", "or file:PATH"),
        ("size=1G,prealloc=yes", "invalid prealloc=yes: expected on or off"),
        ("size=1G,on-violation=panic", "report, stop, machine-check or ignore"),
        ("size=1G,node=-1", "invalid node=-1: expected a number from 0 to 65535"),
        ("size=1G,host-node=65536", "host-node=65536"),
        ("size=1G,busy-every=0", "invalid busy-every=0: expected a number from 1 on"),
    ]);
}

#[test]
fn ram_has_settings_of_its_own() {
    let expected = HostMemoryConfig { host_node: Some(1), ..Backing::Hugetlb1G.into() };
    assert_eq!(parse("backing=hugetlb-1g,host-node=1"), Ok(expected));
    assert_refused::<HostMemoryConfig>(&[("size=1G", "unknown key \"size\"")]);
}

#[test]
fn a_probe_has_its_place_and_wrong_settings_are_named() {
    let root_port = |access_control| PciPlace::RootPort { access_control };
    for (text, place, functions) in [
        ("behind=nothing", PciPlace::RootComplex, 1),
        ("functions=8", PciPlace::RootComplex, 8),
        ("behind=root-port", root_port(false), 1),
        ("behind=root-port,acs=on,functions=2", root_port(true), 2),
        ("behind=bridge", PciPlace::ConventionalBridge, 1),
    ] {
        assert_eq!(parse(text), Ok(ProbeConfig { place, functions, memory: 64 << 10 }));
    }
    assert_refused::<ProbeConfig>(&[
        ("behind=tree", "behind=tree: expected nothing, root-port or bridge"),
        ("functions=9", "9 functions: a PCI device has 1 to 8"),
        ("functions=0", "0 functions"),
        ("functions=256", "functions=256"),
        ("memory=3M", "3M of memory: expected a power of two"),
        ("memory=4G", "4G of memory: expected a power of two"),
        ("acs=on", "root port"),
        ("root-port", "expected key=value"),
        ("colour=blue", "unknown key \"colour\": expected behind, acs, functions or memory"),
    ]);
}

#[test]
fn devices_bypass_the_iommu_at_first_unless_specified_otherwise() {
    let kind = IommuKind::Virtio;
    for (text, bypass) in
        [("virtio", true), ("virtio,bypass=off", false), ("kind=virtio,bypass=on", true)]
    {
        assert_eq!(parse(text), Ok(IommuConfig { kind, bypass }));
    }
    assert_refused::<IommuConfig>(&[
        ("", "invalid kind=: expected virtio"),
        ("intel", "invalid kind=intel: expected virtio"),
        ("bypass=off", "missing kind"),
        ("virtio,", "expected key=value"),
        ("virtio,bypass=perhaps", "perhaps"),
        ("virtio,colour=blue", "colour"),
    ]);
}

#[test]
fn console_targets_are_parsed_or_refused() {
    for (text, target) in [
        ("tty", SerialTarget::Tty),
        ("file:/a:b", SerialTarget::File("/a:b".into())),
        ("unix:c", SerialTarget::Unix("c".into())),
    ] {
        assert_eq!(parse_value(text), Ok(target));
    }
    for text in ["", "pigeon:here", "file:", "unix", "tty:"] {
        let message = parse_value::<SerialTarget>(text).unwrap_err();
        assert!(message.contains("tty, file:PATH or unix:PATH"), "{message}");
    }
}

/// The machine that `moat run` with these options describes.
fn spec(options: &[&str]) -> MachineSpec {
    let arguments = ["moat", "run"].iter().chain(options);
    match Arguments::try_parse_from(arguments).unwrap().command {
        Command::Run(arguments) => arguments.spec(),
        _ => unreachable!("the command is run"),
    }
}

#[test]
fn the_command_line_json_and_toml_spell_the_same_machine() {
    let least = spec(&["--kernel", "bzImage"]);
    assert_eq!(least, MachineSpec::new("bzImage".into()));
    assert_eq!(least, serde_json::from_str(r#"{ "kernel": "bzImage" }"#).unwrap());
    assert_eq!(least, toml::from_str("kernel = 'bzImage'").unwrap());
    let everything = spec(&[
        "--kernel=bzImage",
        "--initrd=initramfs",
        "--cmdline=quiet",
        "--symbols=System.map",
        "--cpus=4",
        "--memory=1.5G",
        "--memory-backing=backing=hugetlb-2m,prealloc=on",
        "--virtio-mem=size=8G,requested=1G,block-size=4M,backing=file:/dev/shm/x,huge-pages=off,\
         host-node=1,node=2,insist-inaccessible=on,busy-every=7,on-violation=machine-check",
        "--virtio-mem=size=1G",
        "--transport=pci",
        "--probe",
        "--probe=behind=root-port,acs=on,functions=2,memory=1M",
        "--iommu=virtio,bypass=off",
        "--enforce=off",
        "--on-reset=restart",
        "--boot-protocol=linux64",
    ]);
    let json = r#"{
        "kernel": "bzImage",
        "initrd": "initramfs",
        "cmdline": "quiet",
        "symbols": "System.map",
        "cpus": 4,
        "memory": "1.5G",
        "memory_backing": { "backing": "hugetlb-2m", "prealloc": true },
        "virtio_mem": [
            {
                "size": 8589934592, "requested": "1G", "block_size": "4M",
                "backing": { "file": "/dev/shm/x" }, "huge_pages": false, "host_node": 1,
                "node": 2, "insist_inaccessible": true, "busy_every": 7,
                "on_violation": "machine-check"
            },
            { "size": "1G" }
        ],
        "transport": "pci",
        "probe": [
            {},
            { "behind": "root-port", "acs": true, "functions": 2, "memory": "1M" }
        ],
        "iommu": { "kind": "virtio", "bypass": false },
        "enforce": "off",
        "on_reset": "restart",
        "boot_protocol": "linux64"
    }"#;
    assert_eq!(everything, serde_json::from_str(json).unwrap());
    let toml = r#"
        kernel = "bzImage"
        initrd = "initramfs"
        cmdline = "quiet"
        symbols = "System.map"
        cpus = 4
        memory = "1.5G"
        memory_backing = { backing = "hugetlb-2m", prealloc = true }
        transport = "pci"
        enforce = "off"
        on_reset = "restart"
        boot_protocol = "linux64"

        [[virtio_mem]]
        size = 8589934592
        requested = "1G"
        block_size = "4M"
        backing.file = "/dev/shm/x"
        huge_pages = false
        host_node = 1
        node = 2
        insist_inaccessible = true
        busy_every = 7
        on_violation = "machine-check"

        [[virtio_mem]]
        size = "1G"

        [[probe]]

        [[probe]]
        behind = "root-port"
        acs = true
        functions = 2
        memory = "1M"

        [iommu]
        kind = "virtio"
        bypass = false
    "#;
    assert_eq!(everything, toml::from_str(toml).unwrap());
    let written = serde_json::to_string(&everything).unwrap();
    assert_eq!(everything, serde_json::from_str(&written).unwrap());
    for unknown in [
        r#"{ "kernel": "k", "colour": 1 }"#,
        r#"{ "kernel": "k", "virtio_mem": [{ "size": "1G", "colour": 1 }] }"#,
        r#"{ "kernel": "k", "memory_backing": { "colour": 1 } }"#,
        r#"{ "kernel": "k", "probe": [{ "colour": 1 }] }"#,
        r#"{ "kernel": "k", "iommu": { "kind": "virtio", "colour": 1 } }"#,
    ] {
        let error = serde_json::from_str::<MachineSpec>(unknown).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
    }
}

/// Options of `moat run` that do not describe the machine, besides those of a program.
const NOT_OF_THE_MACHINE: [&str; 3] = ["serial", "serial2", "api-socket"];

#[test]
fn each_field_of_a_machine_is_an_option_and_each_key_is_in_its_help() {
    let mut command = Arguments::command();
    let run = command.find_subcommand_mut("run").unwrap();
    let describes_the_machine = |it: &&clap::Arg| it.get_help_heading().is_none();
    let options = run.get_arguments().filter(describes_the_machine);
    let options: Vec<String> = options.filter_map(|it| it.get_long().map(str::to_owned)).collect();
    let schema = schema_of::<MachineSpec>();
    let fields: Vec<String> =
        schema["properties"].as_object().unwrap().keys().map(|field| dashed(field)).collect();
    let of_the_machine = |option: &&String| !NOT_OF_THE_MACHINE.contains(&option.as_str());
    let mut sorted: Vec<&String> = options.iter().filter(of_the_machine).collect();
    let mut expected: Vec<&String> = fields.iter().collect();
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    let help = run.render_long_help().to_string();
    for line in [
        "size=SIZE: Size of the region: the most memory that can be plugged",
        "requested=SIZE: Memory that the driver is asked to plug at first [default: 0]",
        "block-size=SIZE: Size of a block, a power of two [default: 2M]",
        "backing=anonymous|memfd|hugetlb-2m|hugetlb-1g|file:PATH: What the memory is made of \
         [default: anonymous]",
        "on-violation=report|stop|machine-check|ignore: What happens after an access to an unplugged \
         block, besides that it is refused and counted [default: report]",
        "behind=nothing|root-port|bridge: ",
        "functions=N: Number of functions, 1 to 8, each a probe of its own [default: 1]",
        "memory=SIZE: Memory in BAR 2, a power of two from 4K to 2G [default: 64K]",
        "[kind=]virtio: ",
        "[default: on]",
        "- restart: The machine starts again",
    ] {
        assert!(help.contains(line), "{help}\nshould say {line:?}");
    }
    for schema in [
        schema_of::<MemoryDeviceConfig>(),
        schema_of::<HostMemoryConfig>(),
        schema_of::<ProbeConfig>(),
        schema_of::<IommuConfig>(),
    ] {
        for (field, property) in schema["properties"].as_object().unwrap() {
            assert!(!description(property).is_empty(), "{field} is not documented");
            let key = [format!("  {}=", dashed(field)), format!("  [{}=]", dashed(field))];
            assert!(key.iter().any(|key| help.contains(key)), "{help}\nshould have {field}");
        }
    }
}
