//! Words for what a device is: types as Slurm's AutoDetect writes them, and addresses on the PCI bus.

/// A product's name as a type: small letters, no spaces. `NVIDIA A100-SXM4-40GB` is `nvidia_a100-sxm4-40gb`, as Slurm's
/// `AutoDetect=nvml` has it. Whatever else could not be written in `--gres` becomes `_`, too.
pub fn of_product(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+');
    let words: Vec<String> = name
        .split_whitespace()
        .map(|w| w.chars().map(|c| if fits(c) { c.to_ascii_lowercase() } else { '_' }).collect())
        .collect();
    words.join("_")
}

/// A part of a GPU, by the product's name and that of the profile, such as `1g.5gb`: `nvidia_a100-sxm4-40gb_1g.5gb`.
/// NVML gives a part's name as `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
pub fn of_part(product: &str, part: &str) -> String {
    match part.rsplit_once(" MIG ") {
        Some((_, profile)) => format!("{}_{}", of_product(product), of_product(profile)),
        None => of_product(part),
    }
}

/// An address of the PCI bus as the kernel writes it: `00000000:3B:00.0` is `0000:3b:00.0`.
pub fn bus(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    match text.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 && domain.is_char_boundary(domain.len() - 4) => {
            let (zeros, four) = domain.split_at(domain.len() - 4);
            // Domains of more than 16 bits exist, and the kernel writes them in full.
            if zeros.bytes().all(|b| b == b'0') { format!("{four}:{rest}") } else { text }
        }
        Some(_) => text,
        None => text,
    }
}

/// What NVML's or AMD's numbers say, as an address.
pub fn address(domain: u64, bus: u64, device: u64, function: u64) -> String {
    format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_types() {
        assert_eq!(of_product("NVIDIA A100-SXM4-40GB"), "nvidia_a100-sxm4-40gb");
        assert_eq!(of_product("Tesla V100-SXM2-16GB"), "tesla_v100-sxm2-16gb");
        assert_eq!(of_product("NVIDIA GeForce RTX 4090"), "nvidia_geforce_rtx_4090");
        assert_eq!(of_product("AMD Instinct MI250X/MI250"), "amd_instinct_mi250x_mi250");
        assert_eq!(of_product(" a,b:c=(d) "), "a_b_c__d_");
        let part = of_part("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb");
        assert_eq!(part, "nvidia_a100-sxm4-40gb_1g.5gb");
    }

    #[test]
    fn addresses_are_the_kernels() {
        assert_eq!(bus("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(bus("0001:C3:00.0"), "0001:c3:00.0");
        assert_eq!(bus("00010000:3B:00.0"), "00010000:3b:00.0");
        assert_eq!((bus("x"), bus("ééé:1")), ("x".into(), "ééé:1".into()));
        assert_eq!(address(0, 0x83, 0, 0), "0000:83:00.0");
    }
}
