//! Dependencies between features of a processor.
//!
//! A host may remove a feature and leave those that depend on it, as QEMU with `-cpu max,-xsave` does. No real
//! processor is like that, and Linux checks only the feature that it uses: with AVX but without XSAVE it
//! crashes at its first AVX instruction (seen with 7.2 in `polyval_mul_pclmul_avx`).

use kvm_bindings::kvm_cpuid_entry2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A bit of CPUID: the leaf, its subleaf, the register, and the bit's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Feature(u32, u32, CpuidRegister, u32);

use CpuidRegister::{Eax, Ebx, Ecx, Edx};

const XSAVE: Feature = Feature(1, 0, Ecx, 26);
const AVX: Feature = Feature(1, 0, Ecx, 28);
const AVX2: Feature = Feature(7, 0, Ebx, 5);
const AVX512F: Feature = Feature(7, 0, Ebx, 16);
const AVX512BW: Feature = Feature(7, 0, Ebx, 30);
const AMX_TILE: Feature = Feature(7, 0, Edx, 24);

/// Features, each with the one that it depends on: `cpuid_deps` in arch/x86/kernel/cpu/cpuid-deps.c of Linux
/// 6.12, as far as it is about extended state. A feature is listed before those that depend on it.
const DEPENDENCIES: [(Feature, Feature); 47] = [
    // OSXSAVE, XSAVEOPT, XSAVEC, XGETBV1, XSAVES, XFD.
    (Feature(1, 0, Ecx, 27), XSAVE),
    (Feature(0xd, 1, Eax, 0), XSAVE),
    (Feature(0xd, 1, Eax, 1), XSAVE),
    (Feature(0xd, 1, Eax, 2), XSAVE),
    (Feature(0xd, 1, Eax, 3), XSAVE),
    (Feature(0xd, 1, Eax, 4), XSAVE),
    // MPX, PKU, OSPKE, LWP.
    (Feature(7, 0, Ebx, 14), XSAVE),
    (Feature(7, 0, Ecx, 3), XSAVE),
    (Feature(7, 0, Ecx, 4), XSAVE),
    (Feature(0x8000_0001, 0, Ecx, 15), XSAVE),
    (AVX, XSAVE),
    // FMA, F16C, VAES, VPCLMULQDQ, XOP, FMA4.
    (Feature(1, 0, Ecx, 12), AVX),
    (Feature(1, 0, Ecx, 29), AVX),
    (Feature(7, 0, Ecx, 9), AVX),
    (Feature(7, 0, Ecx, 10), AVX),
    (Feature(0x8000_0001, 0, Ecx, 11), AVX),
    (Feature(0x8000_0001, 0, Ecx, 16), AVX),
    (AVX2, AVX),
    // AVX-VNNI, AVX-IFMA, AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, SHA512, SM3, SM4.
    (Feature(7, 1, Eax, 4), AVX2),
    (Feature(7, 1, Eax, 23), AVX2),
    (Feature(7, 1, Edx, 4), AVX2),
    (Feature(7, 1, Edx, 5), AVX2),
    (Feature(7, 1, Edx, 10), AVX2),
    (Feature(7, 1, Eax, 0), AVX2),
    (Feature(7, 1, Eax, 1), AVX2),
    (Feature(7, 1, Eax, 2), AVX2),
    (AVX512F, AVX2),
    // AVX-512: DQ, IFMA, PF, ER, CD, BW, VL.
    (Feature(7, 0, Ebx, 17), AVX512F),
    (Feature(7, 0, Ebx, 21), AVX512F),
    (Feature(7, 0, Ebx, 26), AVX512F),
    (Feature(7, 0, Ebx, 27), AVX512F),
    (Feature(7, 0, Ebx, 28), AVX512F),
    (AVX512BW, AVX512F),
    (Feature(7, 0, Ebx, 31), AVX512F),
    // VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ, 4VNNIW, 4FMAPS, VP2INTERSECT, FP16, BF16.
    (Feature(7, 0, Ecx, 1), AVX512F),
    (Feature(7, 0, Ecx, 6), AVX512F),
    (Feature(7, 0, Ecx, 11), AVX512F),
    (Feature(7, 0, Ecx, 12), AVX512F),
    (Feature(7, 0, Ecx, 14), AVX512F),
    (Feature(7, 0, Edx, 2), AVX512F),
    (Feature(7, 0, Edx, 3), AVX512F),
    (Feature(7, 0, Edx, 8), AVX512F),
    (Feature(7, 0, Edx, 23), AVX512BW),
    (Feature(7, 1, Eax, 5), AVX512BW),
    // AMX: TILE, INT8, BF16.
    (AMX_TILE, XSAVE),
    (Feature(7, 0, Edx, 25), AMX_TILE),
    (Feature(7, 0, Edx, 22), AMX_TILE),
];

/// Clears features that depend on a missing one.
pub fn clear_features_without_dependency(entries: &mut [kvm_cpuid_entry2]) {
    for (feature, needed) in DEPENDENCIES {
        let bit = |entries: &mut [kvm_cpuid_entry2], feature| {
            register(entries, feature).is_some_and(|(register, bit)| *register & bit != 0)
        };
        if bit(entries, feature)
            && !bit(entries, needed)
            && let Some((register, bit)) = register(entries, feature)
        {
            *register &= !bit;
        }
    }
}

fn register(
    entries: &mut [kvm_cpuid_entry2],
    Feature(leaf, subleaf, register, bit): Feature,
) -> Option<(&mut u32, u32)> {
    let is_wanted =
        |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (leaf, subleaf);
    let entry = entries.iter_mut().find(is_wanted)?;
    let register = match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    };
    Some((register, 1 << bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with all features.
    fn all() -> Vec<kvm_cpuid_entry2> {
        [(1, 0), (7, 0), (7, 1), (0xd, 1), (0x8000_0001, 0)]
            .map(|(function, index)| kvm_cpuid_entry2 {
                function,
                index,
                eax: !0,
                ebx: !0,
                ecx: !0,
                edx: !0,
                ..Default::default()
            })
            .into()
    }

    /// The features that are cleared if `feature` is missing.
    fn cleared_without(feature: Feature) -> Vec<Feature> {
        let mut entries = all();
        let (bits, bit) = register(&mut entries, feature).unwrap();
        *bits &= !bit;
        clear_features_without_dependency(&mut entries);
        let features = DEPENDENCIES.map(|(feature, _)| feature).into_iter();
        features
            .filter(|feature| {
                let (bits, bit) = register(&mut entries, *feature).unwrap();
                *bits & bit == 0
            })
            .collect()
    }

    #[test]
    fn nothing_is_cleared_if_no_feature_is_missing() {
        let mut entries = all();
        clear_features_without_dependency(&mut entries);
        assert_eq!(entries, all());
    }

    #[test]
    fn without_xsave_all_features_of_extended_state_are_cleared() {
        let everything = DEPENDENCIES.map(|(feature, _)| feature);
        assert_eq!(cleared_without(XSAVE), everything);
    }

    #[test]
    fn features_whose_dependency_is_present_stay() {
        let cleared = cleared_without(AVX512F);
        assert_eq!(cleared.len(), 18, "AVX-512 only");
        assert!(cleared.contains(&AVX512F) && !cleared.contains(&AVX2));
        assert_eq!(cleared_without(AVX512BW).len(), 3);
    }

    #[test]
    fn a_feature_is_listed_before_those_that_depend_on_it() {
        for (index, (_, needed)) in DEPENDENCIES.iter().enumerate() {
            let later = &DEPENDENCIES[index + 1..];
            assert!(later.iter().all(|(feature, _)| feature != needed), "{needed:?}");
        }
    }
}
