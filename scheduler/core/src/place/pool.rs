//! Which devices a request gets: whole islands where there are, near the cores, and so that the largest islands stay whole for
//! those who need them.

use berth_model::devices::{GPU, is_fenced, is_share, islands, of_type, share_name, shares};
use berth_model::gres::Wanted;
use berth_model::hardware::GresDevice;
use berth_model::tres::GresKey;
use std::collections::BTreeMap;

/// Devices of a node or of a job there, and how many shares of each are free.
#[derive(Clone)]
pub(crate) struct Pool<'a> {
    devices: &'a [GresDevice],
    free: Vec<u32>,
    islands: Vec<usize>,
}

/// Devices chosen of a pool: which, and how many shares of each.
pub(crate) type Chosen = BTreeMap<usize, u32>;

impl<'a> Pool<'a> {
    /// What is free of a node, or all that it has.
    pub(crate) fn of_node(devices: &'a [GresDevice], free: Option<&[u32]>) -> Pool<'a> {
        let free = match free {
            Some(free) => {
                let usable = |(free, device): (&u32, &GresDevice)| if is_fenced(device) { 0 } else { *free };
                free.iter().zip(devices).map(usable).collect()
            }
            // One that is fenced may be well again: who asks for it waits.
            None => devices.iter().map(shares).collect(),
        };
        Pool { devices, free, islands: islands(devices) }
    }

    /// What a job has on a node, without what its steps use.
    pub(crate) fn of_job(devices: &'a [GresDevice], used: &[GresDevice]) -> Pool<'a> {
        let mut free: Vec<u32> = devices.iter().map(shares).collect();
        for device in used {
            let same = |own: &GresDevice| own.name == device.name && own.index == device.index;
            if let Some(at) = devices.iter().position(same) {
                free[at] = free[at].saturating_sub(shares(device));
            }
        }
        Pool { devices, free, islands: islands(devices) }
    }

    fn is_whole(&self, at: usize) -> bool {
        self.free[at] > 0 && self.free[at] == shares(&self.devices[at])
    }

    /// The devices that a key means, free or not.
    fn meant(&self, key: &GresKey) -> Vec<usize> {
        let among = |device: &GresDevice| match is_share(&key.name) {
            true => is_shared(device, &key.name),
            false => device.name == key.name,
        };
        of_type(self.devices, among, key.kind.as_deref())
    }

    /// How many of a key there are, whatever else is asked for.
    pub(crate) fn count(&self, key: &GresKey) -> u64 {
        let meant = self.meant(key).into_iter();
        if is_share(&key.name) {
            return meant.map(|at| u64::from(self.free[at])).sum();
        }
        meant.filter(|at| self.is_whole(*at)).count() as u64
    }

    /// Whether there are devices of that name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.devices.iter().any(|d| d.name == name || (is_share(name) && is_shared(d, name)))
    }

    /// The types of the devices of that name.
    pub(crate) fn types(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let own =
            self.devices.iter().filter(move |d| d.name == name || (is_share(name) && is_shared(d, name)));
        own.filter_map(|d| d.kind.as_deref())
    }

    /// All that is free.
    pub(crate) fn all(&self) -> Chosen {
        (0..self.devices.len()).filter(|at| self.is_whole(*at)).map(|at| (at, self.free[at])).collect()
    }

    /// Takes devices for every key: for those first that have the least to choose from, so that an untyped wish does not take what a typed
    /// one needs. `near`: whether a device is near enough; `must`: no others. `None` where there are too few.
    pub(crate) fn take(
        &mut self,
        wanted: &Wanted,
        near: &dyn Fn(&GresDevice) -> bool,
        must: bool,
    ) -> Option<Chosen> {
        let mut chosen = Chosen::new();
        let mut keys: Vec<(&GresKey, u64, Vec<usize>)> =
            wanted.iter().map(|(key, count)| (key, *count, self.meant(key))).collect();
        let slack = |count: u64, meant: &[usize]| (meant.len() as u64).saturating_sub(count);
        keys.sort_by_key(|(key, count, meant)| (key.kind.is_none(), slack(*count, meant), meant.len()));
        for (key, count, meant) in keys {
            if is_share(&key.name) {
                let (at, part) = self.take_shares(&meant, count, near, must)?;
                *chosen.entry(at).or_default() += part;
                continue;
            }
            for at in self.take_whole(&meant, usize::try_from(count).ok()?, near, must)? {
                chosen.insert(at, std::mem::take(&mut self.free[at]));
            }
        }
        Some(chosen)
    }

    /// Shares of one device: of one that is in use already and has the fewest left that do, so that others stay whole.
    fn take_shares(
        &mut self,
        meant: &[usize],
        count: u64,
        near: &dyn Fn(&GresDevice) -> bool,
        must: bool,
    ) -> Option<(usize, u32)> {
        let part = u32::try_from(count).ok()?;
        let at = meant
            .iter()
            .copied()
            .filter(|at| self.free[*at] >= part && (!must || near(&self.devices[*at])))
            .min_by_key(|at| (self.is_whole(*at), !near(&self.devices[*at]), self.free[*at], *at))?;
        self.free[at] -= part;
        Some((at, part))
    }

    fn take_whole(
        &self,
        meant: &[usize],
        count: usize,
        near: &dyn Fn(&GresDevice) -> bool,
        must: bool,
    ) -> Option<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for at in meant {
            if self.is_whole(*at) && (!must || near(&self.devices[*at])) {
                groups.entry(self.islands[*at]).or_default().push(*at);
            }
        }
        for group in groups.values_mut() {
            group.sort_by_key(|at| (!near(&self.devices[*at]), *at));
        }
        let mut got = Vec::with_capacity(count);
        while got.len() < count {
            let left = count - got.len();
            let nears = |group: &Vec<usize>| group.iter().filter(|at| near(&self.devices[**at])).count();
            // The smallest island that has all of it, near before far; else the largest, of those the nearest, and then again.
            let fitting = groups.iter().filter(|(_, group)| group.len() >= left);
            let best = fitting.min_by_key(|(first, group)| (nears(group) < left, group.len(), **first));
            let largest = || {
                let size = |(first, group): &(&usize, &Vec<usize>)| {
                    (group.len(), nears(group), std::cmp::Reverse(**first))
                };
                groups.iter().max_by_key(size)
            };
            let island = *best.or_else(largest)?.0;
            let group = groups.remove(&island)?;
            got.extend(group.into_iter().take(left));
        }
        got.sort_unstable();
        Some(got)
    }

    /// The devices as they are given.
    pub(crate) fn given(&self, chosen: &Chosen) -> Vec<GresDevice> {
        let mut given: Vec<GresDevice> =
            chosen.iter().map(|(at, part)| as_given(&self.devices[*at], *part)).collect();
        given.sort_by(|a, b| (&a.name, a.index).cmp(&(&b.name, b.index)));
        given
    }
}

/// Whether a device is given in shares of that name.
fn is_shared(device: &GresDevice, name: &str) -> bool {
    let can = is_share(&device.name) || (device.name == GPU && shares(device) > 1);
    can && share_name(device) == name
}

/// A device that is given whole stays what it is; shares of one have a name of their own, and say how many they are.
fn as_given(device: &GresDevice, part: u32) -> GresDevice {
    let given = device.clone();
    let whole = part == shares(device) && !is_share(&device.name);
    if whole { given } else { GresDevice { name: share_name(device).to_string(), shares: part, ..given } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Eight GPUs in islands of four, two and two, of which the last two are joined by way of nothing.
    fn eight() -> Vec<GresDevice> {
        let links: [&[u32]; 8] = [&[1], &[2], &[3], &[], &[5], &[], &[], &[]];
        (0..8)
            .map(|index| GresDevice {
                name: "gpu".into(),
                index,
                links: links[index as usize].to_vec(),
                cpus: if index < 4 { vec![0, 1] } else { vec![2, 3] },
                ..GresDevice::default()
            })
            .collect()
    }

    fn taken(
        all: &[GresDevice],
        free: &[u32],
        wanted: &str,
        near: &dyn Fn(&GresDevice) -> bool,
    ) -> Option<Vec<usize>> {
        let mut pool = Pool::of_node(all, Some(free));
        let wanted = berth_model::gres::parse(wanted).unwrap();
        pool.take(&wanted, near, false).map(|chosen| chosen.into_keys().collect())
    }

    #[test]
    fn whole_islands_come_first_and_the_largest_stay_whole() {
        let (all, any) = (eight(), |_: &GresDevice| true);
        assert_eq!(islands(&all), [0, 0, 0, 0, 4, 4, 6, 7]);
        let of = |free: &[u32], wanted: &str| taken(&all, free, wanted, &any).unwrap();
        assert_eq!(of(&[1; 8], "gpu:1"), [6], "one alone");
        assert_eq!(of(&[1; 8], "gpu:2"), [4, 5], "the pair");
        assert_eq!(of(&[1; 8], "gpu:4"), [0, 1, 2, 3]);
        assert_eq!(of(&[1; 8], "gpu:3"), [0, 1, 2]);
        assert_eq!(of(&[1; 8], "gpu:6"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(&[0, 1, 1, 0, 1, 0, 0, 0], "gpu:2"), [1, 2]);
        assert_eq!(taken(&all, &[0, 1, 0, 0, 0, 0, 0, 0], "gpu:2", &any), None);
        // Of islands that are equally large, the near ones first.
        let right = |device: &GresDevice| device.index > 6;
        let alone: Vec<GresDevice> = eight().into_iter().map(|d| GresDevice { links: vec![], ..d }).collect();
        assert_eq!(taken(&alone, &[1; 8], "gpu:2", &right).unwrap(), [0, 7]);
        let last = |device: &GresDevice| device.index > 4;
        assert_eq!(taken(&alone, &[1; 8], "gpu:3", &last).unwrap(), [5, 6, 7]);
        // Near ones before far ones, where an island of near ones has enough.
        let left = |device: &GresDevice| device.cpus.contains(&0);
        assert_eq!(taken(&all, &[1; 8], "gpu:2", &left).unwrap(), [0, 1]);
        let mut pool = Pool::of_node(&all, Some(&[1; 8]));
        assert!(
            pool.take(&berth_model::gres::parse("gpu:5").unwrap(), &left, true).is_none(),
            "only four are near"
        );
    }

    #[test]
    fn fenced_devices_are_given_to_nobody_and_waited_for() {
        let mut all = eight();
        all[6].fault = Some("fell off the bus".into());
        assert_eq!(taken(&all, &[1; 8], "gpu:1", &|_| true).unwrap(), [7]);
        let key = GresKey { name: "gpu".into(), kind: None };
        assert_eq!(Pool::of_node(&all, Some(&[1; 8])).count(&key), 7);
        assert_eq!(Pool::of_node(&all, None).count(&key), 8);
        assert_eq!(Pool::of_node(&all, Some(&[1; 8])).all().len(), 7, "nor with the whole node");
    }

    #[test]
    fn shares_are_those_of_one_device_and_leave_others_whole() {
        let mut all = eight();
        all.iter_mut().for_each(|device| device.shares = 4);
        let shard = berth_model::gres::parse("shard:2").unwrap();
        let mut pool = Pool::of_node(&all, Some(&[4, 4, 4, 3, 2, 4, 4, 4]));
        let chosen = pool.take(&shard, &|_| true, false).unwrap();
        assert_eq!(chosen, Chosen::from([(4, 2)]), "the one with the fewest left");
        let given = pool.given(&chosen);
        assert_eq!((given[0].name.as_str(), given[0].index, given[0].shares), ("shard", 4, 2));
        let five = berth_model::gres::parse("shard:5").unwrap();
        assert!(pool.take(&five, &|_| true, false).is_none(), "not over several");
        let whole = pool.take(&berth_model::gres::parse("gpu:7").unwrap(), &|_| true, false);
        assert!(whole.is_none(), "two are shared");
        // A step has a part of its job's shares.
        let of_step = Pool::of_job(&given, &[GresDevice { shares: 1, ..given[0].clone() }]);
        assert_eq!(of_step.count(&GresKey { name: "shard".into(), kind: None }), 1);
    }

    /// Two whole GPUs of a long type, one in two parts, and one of another type.
    fn typed() -> Vec<GresDevice> {
        let kinds = [
            "nvidia_a100-sxm4-40gb",
            "nvidia_a100-sxm4-40gb",
            "nvidia_a100-sxm4-40gb_1g.5gb",
            "nvidia_a100-sxm4-40gb_1g.5gb",
            "nvidia_h100_nvl",
        ];
        let device = |(index, kind): (u32, &str)| GresDevice {
            name: "gpu".into(),
            kind: Some(kind.to_string()),
            index,
            ..GresDevice::default()
        };
        (0..).zip(kinds).map(device).collect()
    }

    #[test]
    fn a_part_of_a_type_is_counted_and_taken_as_the_whole_of_it() {
        let all = typed();
        let of = |free: &[u32], wanted: &str| taken(&all, free, wanted, &|_| true);
        let count = |wanted: &str| {
            let wanted = berth_model::gres::parse(wanted).unwrap();
            wanted.keys().map(|key| Pool::of_node(&all, Some(&[1; 5])).count(key)).collect::<Vec<u64>>()
        };
        assert_eq!((count("gpu:a100"), of(&[1; 5], "gpu:a100:2")), (vec![2], Some(vec![0, 1])));
        assert_eq!((count("gpu:1g.5gb"), of(&[1; 5], "gpu:1g.5gb:1")), (vec![2], Some(vec![2])));
        assert_eq!((count("gpu:h100"), count("gpu:nvidia"), count("gpu")), (vec![1], vec![3], vec![5]));
        assert_eq!(of(&[1; 5], "gpu:a100:3"), None, "no part of one is an a100");
        assert_eq!(of(&[0, 0, 1, 1, 1], "gpu:a100:1"), None);
        assert_eq!(of(&[1; 5], "gpu:h200:1"), None);
        // What fewer devices satisfy has its own first, whatever its name.
        assert_eq!(of(&[1; 5], "gpu:a100:2,gpu:nvidia:1"), Some(vec![0, 1, 4]));
        assert_eq!(of(&[1, 0, 0, 0, 1], "gpu:1,gpu:a100:1"), Some(vec![0, 4]));
        assert_eq!(of(&[0, 1, 1, 0, 1], "gpu:nvidia:1,gpu:nvl:1,gpu:1g.5gb:1"), Some(vec![1, 2, 4]));
        assert_eq!(of(&[1; 5], "gpu:a100:2,gpu:nvidia:2"), None);
        // The same of what a job has, and of shares.
        let job = Pool::of_job(&all[1..3], &[]);
        assert_eq!(job.count(&GresKey { name: "gpu".into(), kind: Some("a100".into()) }), 1);
        let mut shared = typed();
        shared.iter_mut().for_each(|device| device.shares = 4);
        let key = GresKey { name: "shard".into(), kind: Some("a100".into()) };
        assert_eq!(Pool::of_node(&shared, None).count(&key), 8);
    }

    #[test]
    fn the_very_type_wins_on_its_node() {
        let mut all = typed();
        all[4].kind = Some("a100".into());
        assert_eq!(taken(&all, &[1; 5], "gpu:a100:1", &|_| true), Some(vec![4]));
        assert_eq!(taken(&all, &[1; 5], "gpu:a100:2", &|_| true), None, "the others are of a longer type");
        assert_eq!(taken(&all, &[1; 5], "gpu:sxm4-40gb:2", &|_| true), Some(vec![0, 1]));
    }

    proptest! {
        #[test]
        fn as_many_as_were_asked_for_are_taken_once(free in proptest::collection::vec(0..2u32, 8), count in 1..9u64) {
            let all = eight();
            let mut pool = Pool::of_node(&all, Some(&free));
            let there = u64::from(free.iter().sum::<u32>());
            let key = GresKey { name: "gpu".into(), kind: None };
            let chosen = pool.take(&Wanted::from([(key.clone(), count)]), &|_| true, false);
            prop_assert_eq!(chosen.is_some(), there >= count);
            if let Some(chosen) = chosen {
                prop_assert_eq!(chosen.len() as u64, count);
                prop_assert!(chosen.keys().all(|at| free[*at] == 1));
                prop_assert_eq!(pool.count(&key), there - count);
            }
        }
    }
}
