//! `PMI_process_mapping`: which rank is on which node, in the words by which MPICH and its kin read it.

use std::fmt::Write;

/// Longest that is told: PMI-1's libraries read a line of 1,024 bytes. Ranks that are told nothing ask one another for the
/// names of their hosts.
const LONGEST: usize = 960;

/// A run of consecutive nodes with as many consecutive ranks each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    first: usize,
    nodes: usize,
    each: usize,
}

/// The mapping of ranks to nodes: `(vector,(FIRST,NODES,EACH),…)`, each block `NODES` nodes from node `FIRST` on with `EACH`
/// ranks, the ranks counted on from block to block. `tasks` are the ranks of each node. `None` where it would not fit the
/// line of a client, or the layout is none.
pub fn process_mapping(tasks: &[Vec<u32>]) -> Option<String> {
    let total: usize = tasks.iter().map(Vec::len).sum();
    let mut nodes: Vec<Option<usize>> = vec![None; total];
    for (node, ranks) in tasks.iter().enumerate() {
        for rank in ranks {
            *nodes.get_mut(usize::try_from(*rank).ok()?)? = Some(node);
        }
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for node in nodes {
        let node = node?;
        match runs.last_mut() {
            Some((last, each)) if *last == node => *each += 1,
            _ => runs.push((node, 1)),
        }
    }
    let mut blocks: Vec<Block> = Vec::new();
    for (node, each) in runs {
        match blocks.last_mut() {
            Some(block) if block.each == each && block.first + block.nodes == node => block.nodes += 1,
            _ => blocks.push(Block { first: node, nodes: 1, each }),
        }
    }
    if blocks.is_empty() {
        return None;
    }
    let text = written(&blocks);
    if text.len() <= LONGEST {
        return Some(text);
    }
    // Readers begin again where the blocks end and ranks are left.
    let again = (1..blocks.len()).find(|n| blocks.iter().zip(&blocks[*n..]).all(|(a, b)| a == b))?;
    Some(written(&blocks[..again])).filter(|text| text.len() <= LONGEST)
}

fn written(blocks: &[Block]) -> String {
    let mut text = "(vector".to_string();
    for Block { first, nodes, each } in blocks {
        // Writing to a string does not fail.
        let _ = write!(text, ",({first},{nodes},{each})");
        if text.len() > 16 * LONGEST {
            break;
        }
    }
    text.push(')');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MPICH reads it.
    fn read(text: &str, total: usize) -> Vec<usize> {
        let inner = text.strip_prefix("(vector,(").unwrap().strip_suffix("))").unwrap();
        let blocks: Vec<Vec<usize>> =
            inner.split("),(").map(|b| b.split(',').map(|n| n.parse().unwrap()).collect()).collect();
        let mut nodes = Vec::new();
        while nodes.len() < total {
            for block in &blocks {
                for node in 0..block[1] {
                    nodes.extend(std::iter::repeat_n(block[0] + node, block[2]));
                }
            }
        }
        nodes.truncate(total);
        nodes
    }

    #[test]
    fn block_cyclic_plane_and_arbitrary_layouts_have_the_words_that_are_known() {
        let on = |tasks: &[&[u32]]| process_mapping(&tasks.iter().map(|t| t.to_vec()).collect::<Vec<_>>());
        assert_eq!(on(&[&[0, 1, 2, 3]]).unwrap(), "(vector,(0,1,4))");
        assert_eq!(on(&[&[0, 1], &[2, 3], &[4, 5]]).unwrap(), "(vector,(0,3,2))");
        assert_eq!(on(&[&[0, 1], &[2]]).unwrap(), "(vector,(0,1,2),(1,1,1))");
        assert_eq!(on(&[&[0, 2], &[1, 3]]).unwrap(), "(vector,(0,2,1),(0,2,1))");
        assert_eq!(on(&[&[0, 1, 4, 5], &[2, 3, 6]]).unwrap(), "(vector,(0,2,2),(0,1,2),(1,1,1))");
        assert_eq!(on(&[&[3], &[0, 1], &[2]]).unwrap(), "(vector,(1,1,2),(2,1,1),(0,1,1))");
        assert_eq!(on(&[]), None);
        assert_eq!(on(&[&[0, 2]]), None, "no rank 1 anywhere");
        assert_eq!(on(&[&[7]]), None);
    }

    #[test]
    fn a_long_cyclic_layout_is_told_by_its_beginning_and_a_long_wild_one_not_at_all() {
        let cyclic: Vec<Vec<u32>> = (0..7).map(|n| (0..1000).map(|k| k * 7 + n).collect()).collect();
        let text = process_mapping(&cyclic).unwrap();
        assert_eq!(text, "(vector,(0,7,1))");
        let truth: Vec<usize> = (0..7000).map(|rank| rank % 7).collect();
        assert_eq!(read(&text, 7000), truth);
        let mut wild = vec![Vec::new(); 5];
        for rank in 0..5000u32 {
            wild[(rank.wrapping_mul(2_654_435_761) >> 16) as usize % 5].push(rank);
        }
        assert_eq!(process_mapping(&wild), None);
    }

    proptest::proptest! {
        #[test]
        fn every_layout_reads_back(places in proptest::collection::vec(0usize..6, 1..80)) {
            let mut tasks = vec![Vec::new(); 6];
            for (rank, node) in places.iter().enumerate() {
                tasks[*node].push(u32::try_from(rank).unwrap());
            }
            if let Some(text) = process_mapping(&tasks) {
                proptest::prop_assert_eq!(read(&text, places.len()), places);
            }
        }
    }
}
