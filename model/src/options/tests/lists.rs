//! Lists of nodes in files: what an option says of one, and what is taken of its text.

use super::*;

fn names(nodes: &[NodeName]) -> Vec<&str> {
    nodes.iter().map(|node| node.0.as_str()).collect()
}

#[test]
fn nodelist_and_exclude_take_a_list_or_a_file_of_one() {
    let mut options = srun("-w ./wanted -x lists/unwanted true").unwrap();
    assert_eq!(options.node_file(None), Some(ByteStr::from("./wanted")));
    assert_eq!(options.exclude_file, Some(ByteStr::from("lists/unwanted")));
    let file = ByteStr::from("lists/unwanted");
    options.take_exclude_file(&file, "n3 # the slow one\n\nn[1-2],n3*2\n").unwrap();
    assert_eq!(names(&options.exclude), ["n1", "n2", "n3"]);
    assert_eq!(options.exclude_file, None);
    // Both lists are held against each other, whichever is read first.
    let error = options.take_node_file(&ByteStr::from("./wanted"), "n4 n2").unwrap_err();
    assert!(error.lines[0].contains("both in --nodelist and in --exclude"), "{error}");
    let mut options = srun("-w n[1-2] -x ./unwanted true").unwrap();
    let error = options.take_exclude_file(&ByteStr::from("./unwanted"), "n2").unwrap_err();
    assert!(error.lines[0].contains("both in --nodelist and in --exclude"), "{error}");
    for (text, why) in [("# none", "it names no node"), ("n[1", "n[1"), ("n1*0", "how often")] {
        let error = options.take_exclude_file(&ByteStr::from("./unwanted"), text).unwrap_err();
        assert_eq!(error.exit_code, 255, "{text}");
        assert!(error.lines[0].starts_with("Invalid node list specified: ./unwanted: "), "{error}");
        assert!(error.lines[0].contains(why), "{error}");
    }
}

#[test]
fn what_is_said_last_counts() {
    let listed = srun("-x ./unwanted -x n1 -w ./wanted -w n2 true").unwrap();
    assert_eq!((names(&listed.exclude), listed.exclude_file.clone()), (vec!["n1"], None));
    assert_eq!((names(&listed.nodelist), listed.node_file(None)), (vec!["n2"], None));
    let file = srun("-x n1 -x ./unwanted true").unwrap();
    assert_eq!(file.exclude_file, Some(ByteStr::from("./unwanted")));
    // A script's file gives way to the command line's list; --nodefile has its own word.
    let mut settings =
        parse(Command::Sbatch, &words("-w ./wanted -x ./unwanted"), Source::Script(2)).unwrap().settings;
    settings.extend(parse(Command::Sbatch, &words("-w n2 -x n1"), Source::CommandLine).unwrap().settings);
    let options = resolve(Command::Sbatch, settings, &context()).unwrap();
    assert_eq!((options.node_file(None), options.exclude_file), (None, None));
    assert_eq!(srun("-F nodes.txt -w n2 true").unwrap().node_file(None), Some(ByteStr::from("nodes.txt")));
}
