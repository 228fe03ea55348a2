//! What an image requires of the driver: by words of which one must hold, each of parts that must all (`NVIDIA_REQUIRE_*`), or by the CUDA
//! that it brings (`CUDA_VERSION`).

use std::cmp::Ordering;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The newest CUDA that the driver runs.
    pub cuda: Option<(u32, u32)>,
    /// The driver's version.
    pub driver: String,
    /// `tesla`; absent means that the driver does not say.
    pub brand: Option<String>,
    /// Compute capability.
    pub arch: Option<(u32, u32)>,
}

/// What follows for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs.
    Runs,
    /// It runs with the newer libraries of the driver that the image brings (`/usr/local/cuda/compat`): the image wants a newer CUDA, and
    /// says itself that this driver does.
    WithCompat,
}

/// Whether it is to be tried whatever is required.
pub fn is_disabled<'a>(mut env: impl Iterator<Item = &'a [u8]>) -> bool {
    env.any(|pair| {
        let value = pair.strip_prefix(b"NVIDIA_DISABLE_REQUIRE=");
        value.is_some_and(|value| !matches!(value, b"" | b"0" | b"false" | b"no"))
    })
}

/// Judges the requirements in a container's environment. `image`: what of it the image itself says.
///
/// # Errors
/// Which requirement fails, by what, and what to do.
pub fn judge<'a>(
    image: impl Iterator<Item = &'a [u8]>,
    env: impl Iterator<Item = &'a [u8]> + Clone,
    have: &Have,
) -> Result<Verdict, String> {
    if is_disabled(env.clone()) {
        return Ok(Verdict::Runs);
    }
    let mut verdict = Verdict::Runs;
    let mut required = Vec::new();
    for pair in env.filter_map(|pair| std::str::from_utf8(pair).ok()) {
        let Some((name, value)) = pair.split_once('=') else { continue };
        // That of images for Jetson says what of the machine they want, and nothing of the driver.
        let of_driver = name.starts_with("NVIDIA_REQUIRE_") && !name.starts_with("NVIDIA_REQUIRE_JETPACK");
        if of_driver && !value.trim().is_empty() {
            required.push((name, value));
        }
    }
    if !required.iter().any(|(name, _)| *name == "NVIDIA_REQUIRE_CUDA") {
        brought(image, have)?;
    }
    for (name, value) in required {
        let mut holding =
            value.split_whitespace().filter(|word| word.split(',').all(|part| holds(part, have)));
        let Some(first) = holding.next() else {
            let cuda = have.cuda.map_or("none that it names".to_string(), |(a, b)| format!("{a}.{b}"));
            return Err(format!(
                "the image requires '{value}' ({name}), and this node has driver {} with CUDA {cuda}: take an image of an older CUDA, ask for a node with a newer driver, or set NVIDIA_DISABLE_REQUIRE=1 to try anyway",
                have.driver
            ));
        };
        let cuda_holds = |word: &str| word.split(',').any(|part| part.starts_with("cuda"));
        // An alternative without CUDA holds: the version that the others name is newer than the driver's.
        if !cuda_holds(first) && !holding.any(cuda_holds) && value.contains("cuda") {
            verdict = Verdict::WithCompat;
        }
    }
    Ok(verdict)
}

/// Judges an image of CUDA's by the version that it says it brings. A driver runs all of its own major version and of earlier ones: CUDA's
/// "minor version compatibility", which began with 11. What a submitter has in the shell is no word about the image.
fn brought<'a>(mut image: impl Iterator<Item = &'a [u8]>, have: &Have) -> Result<(), String> {
    let version = image.find_map(|pair| std::str::from_utf8(pair.strip_prefix(b"CUDA_VERSION=")?).ok());
    let mut numbers = version.unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
    let (Some(version), Some(runs), Some(major)) = (version, have.cuda, numbers.next()) else {
        return Ok(());
    };
    let minor = if major < 11 { numbers.next().unwrap_or(0) } else { 0 };
    if runs >= (major, minor) {
        return Ok(());
    }
    Err(format!(
        "the image brings CUDA {version} (CUDA_VERSION), and this node's driver {} runs CUDA {}.{}: take an image of an older CUDA, ask for a node with a newer driver, or set NVIDIA_DISABLE_REQUIRE=1 to try anyway",
        have.driver, runs.0, runs.1
    ))
}

fn holds(part: &str, have: &Have) -> bool {
    const SIGNS: [&str; 6] = [">=", "<=", "!=", "=", ">", "<"];
    let Some((at, sign)) =
        SIGNS.iter().filter_map(|s| part.find(s).map(|at| (at, *s))).min_by_key(|(at, s)| (*at, 3 - s.len()))
    else {
        return false;
    };
    let (name, value) = (&part[..at], &part[at + sign.len()..]);
    let order = match name {
        "cuda" => have.cuda.map(|(a, b)| compare(&format!("{a}.{b}"), value)),
        // Of a driver an image names the branch: 535 is every 535.
        "driver" => {
            let depth = value.split('.').count();
            let own: Vec<&str> = have.driver.split('.').take(depth).collect();
            Some(compare(&own.join("."), value))
        }
        "arch" => have.arch.map(|(a, b)| compare(&format!("{a}.{b}"), value)),
        "brand" => {
            let same = have.brand.as_deref().unwrap_or("unknown").eq_ignore_ascii_case(value);
            return match sign {
                "=" => same,
                "!=" => !same,
                _ => false,
            };
        }
        _ => None,
    };
    order.is_some_and(|order| match sign {
        ">=" => order != Ordering::Less,
        "<=" => order != Ordering::Greater,
        "!=" => order != Ordering::Equal,
        "=" => order == Ordering::Equal,
        ">" => order == Ordering::Greater,
        _ => order == Ordering::Less,
    })
}

/// Versions by their numbers; what is missing is 0.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |t: &str| t.split('.').map(|p| p.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>();
    let (a, b) = (numbers(a), numbers(b));
    let get = |list: &[u64], n: usize| list.get(n).copied().unwrap_or(0);
    (0..a.len().max(b.len()))
        .map(|n| get(&a, n).cmp(&get(&b, n)))
        .find(|o| *o != Ordering::Equal)
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_CUDA_12_4: &str = "NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=535,driver<536";

    fn have(driver: &str, cuda: (u32, u32), brand: Option<&str>) -> Have {
        Have { driver: driver.into(), cuda: Some(cuda), brand: brand.map(Into::into), arch: Some((8, 0)) }
    }

    fn of(env: &[&str], have: &Have) -> Result<Verdict, String> {
        let env = env.iter().map(|e| e.as_bytes());
        judge(env.clone(), env, have)
    }

    #[test]
    fn an_image_without_words_is_judged_by_the_cuda_that_it_brings() {
        let runs = |version: &str, cuda: (u32, u32)| of(&[version], &have("535.54.03", cuda, None)).is_ok();
        assert!(runs("CUDA_VERSION=12.8.1", (12, 2)), "of the same major version");
        assert!(runs("CUDA_VERSION=11.8.0", (12, 2)) && runs("CUDA_VERSION=9.2.148", (9, 2)));
        assert!(!runs("CUDA_VERSION=13.0.1", (12, 9)) && !runs("CUDA_VERSION=10.1.243", (10, 0)));
        assert!(runs("CUDA_VERSION=", (12, 2)) && runs("CUDA_VERSION=none", (12, 2)));
        assert!(of(&["CUDA_VERSION=13.0.1"], &Have::default()).is_ok(), "a driver that does not say it");
        let older = have("535.54.03", (12, 2), None);
        let refused = of(&["CUDA_VERSION=13.0.1"], &older).unwrap_err();
        assert!(
            refused.contains("CUDA 13.0.1") && refused.contains("driver 535.54.03 runs CUDA 12.2"),
            "{refused}"
        );
        // Its own words stand over that, and so does whoever tries; a shell's variable is no word of the image's.
        assert!(of(&["CUDA_VERSION=13.0.1", "NVIDIA_REQUIRE_CUDA=cuda>=9.0"], &older).is_ok());
        assert!(of(&["CUDA_VERSION=13.0.1", "NVIDIA_DISABLE_REQUIRE=1"], &older).is_ok());
        let shell = ["CUDA_VERSION=13.0.1"].iter().map(|pair| pair.as_bytes());
        assert_eq!(judge(std::iter::empty(), shell, &older), Ok(Verdict::Runs));
    }

    #[test]
    fn requirements_are_judged() {
        assert_eq!(of(&[OF_CUDA_12_4], &have("550.54.14", (12, 4), Some("geforce"))), Ok(Verdict::Runs));
        assert_eq!(of(&[OF_CUDA_12_4], &have("570.86.10", (12, 8), None)), Ok(Verdict::Runs));
        assert_eq!(of(&[OF_CUDA_12_4], &have("470.256.02", (11, 4), Some("tesla"))), Ok(Verdict::WithCompat));
        assert_eq!(of(&[OF_CUDA_12_4], &have("535.54.03", (12, 2), None)), Ok(Verdict::WithCompat));
        let refused = of(&[OF_CUDA_12_4], &have("535.54.03", (12, 2), Some("geforce"))).unwrap_err();
        assert!(refused.contains("driver 535.54.03 with CUDA 12.2"), "{refused}");
        let off = [OF_CUDA_12_4, "NVIDIA_DISABLE_REQUIRE=1"];
        assert_eq!(of(&off, &have("390.1", (9, 0), None)), Ok(Verdict::Runs));
        assert_eq!(of(&["PATH=/x", "NVIDIA_REQUIRE_CUDA="], &Have::default()), Ok(Verdict::Runs));
        let jetson = ["NVIDIA_REQUIRE_JETPACK_HOST_MOUNTS=base-only"];
        assert_eq!(of(&jetson, &have("570.1", (12, 8), None)), Ok(Verdict::Runs));
        let arch = ["NVIDIA_REQUIRE_ARCH=arch>=9.0"];
        assert!(of(&arch, &have("570.1", (12, 8), None)).is_err());
        for odd in ["NVIDIA_REQUIRE_X=nonsense", "NVIDIA_REQUIRE_X=>=", "NVIDIA_REQUIRE_X=foo>1"] {
            assert!(of(&[odd], &Have::default()).is_err(), "{odd}");
        }
    }
}
