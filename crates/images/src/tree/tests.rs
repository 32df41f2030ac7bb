use super::*;

fn path(text: &str) -> EntryPath<'_> {
    EntryPath::parse(text.as_bytes()).unwrap()
}

fn put(tree: &mut Tree, at: &str, content: Content) {
    let place = tree.locate(&path(at)).unwrap();
    tree.insert(&place, Attributes::plain(0o644), content).unwrap();
}

fn fifo(tree: &mut Tree, at: &str) {
    put(tree, at, Content::Fifo);
}

fn link(tree: &mut Tree, at: &str, target: &str) {
    put(tree, at, Content::Symlink(target.as_bytes().into()));
}

fn dir(tree: &mut Tree, at: &str, mode: u16) {
    let place = tree.locate(&path(at)).unwrap();
    tree.put_directory(&place, Attributes::plain(mode)).unwrap();
}

/// Every path, depth first.
fn paths(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: InodeId, prefix: &str, out: &mut Vec<String>) {
        for (name, entry) in tree.entries(id) {
            let path = format!("{prefix}{}", String::from_utf8_lossy(name));
            out.push(path.clone());
            walk(tree, entry.inode, &format!("{path}/"), out);
        }
    }
    let mut out = Vec::new();
    walk(tree, Tree::ROOT, "", &mut out);
    out
}

#[test]
fn a_whiteout_hides_lower_layers_only_wherever_it_stands() {
    for whiteout_first in [true, false] {
        let mut tree = Tree::new();
        for name in ["a/x", "a/y", "b", "c"] {
            fifo(&mut tree, name);
        }
        tree.begin_layer();
        let hide = |tree: &mut Tree| {
            tree.whiteout(&path("/"), b"a").unwrap();
            tree.whiteout(&path("/"), b"b").unwrap();
            tree.whiteout(&path("nowhere/at/all"), b"b").unwrap();
        };
        if whiteout_first {
            hide(&mut tree);
        }
        dir(&mut tree, "a", 0o700);
        fifo(&mut tree, "a/z");
        fifo(&mut tree, "b");
        if !whiteout_first {
            hide(&mut tree);
        }
        assert_eq!(paths(&tree), ["a", "a/z", "b", "c"], "whiteout first: {whiteout_first}");
        assert_eq!(tree.len(), 4);
    }
}

#[test]
fn an_opaque_directory_keeps_its_own_layer_and_its_attributes() {
    let mut tree = Tree::new();
    for name in ["d/old", "d/sub/old", "e/old"] {
        fifo(&mut tree, name);
    }
    tree.begin_layer();
    dir(&mut tree, "d", 0o750);
    fifo(&mut tree, "d/sub/new");
    tree.opaque(&path("d")).unwrap();
    tree.opaque(&path("d")).unwrap();
    assert_eq!(paths(&tree), ["d", "d/sub", "d/sub/new", "e", "e/old"]);
    let place = tree.locate(&path("d")).unwrap();
    assert_eq!(tree.get(&place).unwrap().attributes.mode, 0o750);
}

#[test]
fn links_are_followed_inside_the_tree_only() {
    let mut tree = Tree::new();
    dir(&mut tree, "usr/lib", 0o755);
    link(&mut tree, "lib", "usr/lib");
    link(&mut tree, "up", "../../../../usr");
    link(&mut tree, "abs", "/usr/lib/../new");
    tree.begin_layer();
    fifo(&mut tree, "lib/a");
    fifo(&mut tree, "up/b");
    fifo(&mut tree, "abs/c");
    assert_eq!(
        paths(&tree),
        ["abs", "lib", "up", "usr", "usr/b", "usr/lib", "usr/lib/a", "usr/new", "usr/new/c"]
    );
}

#[test]
fn circles_and_files_as_parents_are_errors() {
    let mut tree = Tree::new();
    link(&mut tree, "x", "y");
    link(&mut tree, "y", "x");
    fifo(&mut tree, "f");
    assert!(matches!(tree.locate(&path("x/a")), Err(TreeError::SymlinkLoop { .. })));
    assert!(matches!(tree.locate(&path("f/a")), Err(TreeError::NotADirectory { .. })));
    dir(&mut tree, "d", 0o755);
    link(&mut tree, "long", &"d/../".repeat(800));
    link(&mut tree, "more", &"long/".repeat(30));
    assert!(matches!(tree.locate(&path("more/a")), Err(TreeError::SymlinkLoop { .. })), "a budget of steps");
}

#[test]
fn a_layer_has_a_budget_of_steps() {
    let mut tree = Tree::new();
    dir(&mut tree, "d", 0o755);
    link(&mut tree, "long", &"d/../".repeat(800));
    link(&mut tree, "more", &"long/".repeat(4));
    assert!((0..3000).all(|_| tree.locate(&path("more/a")).is_ok()));
    let refused = (0..3000).find_map(|_| tree.locate(&path("more/a")).err());
    assert_eq!(refused, Some(TreeError::TooManySteps));
    tree.begin_layer();
    assert!(tree.locate(&path("more/a")).is_ok());
}

#[test]
fn a_directory_replaces_a_link_and_the_other_way_round() {
    let mut tree = Tree::new();
    fifo(&mut tree, "real/a");
    link(&mut tree, "l", "real");
    fifo(&mut tree, "d/inside");
    tree.begin_layer();
    dir(&mut tree, "l", 0o755);
    link(&mut tree, "d", "real");
    assert_eq!(paths(&tree), ["d", "l", "real", "real/a"]);
    assert_eq!(tree.len(), 4);
}

#[test]
fn hardlinks_share_an_inode_until_the_last_name_goes() {
    let mut tree = Tree::new();
    fifo(&mut tree, "a");
    let place = tree.locate(&path("b/c")).unwrap();
    tree.hardlink(&place, &path("./a")).unwrap();
    tree.hardlink(&place, &path("/a")).unwrap();
    assert_eq!(tree.get(&place).unwrap().nlink, 2);
    tree.begin_layer();
    tree.whiteout(&path("/"), b"a").unwrap();
    assert_eq!(tree.get(&place).unwrap().nlink, 1);
    let other = tree.locate(&path("x")).unwrap();
    assert!(matches!(tree.hardlink(&other, &path("a")), Err(TreeError::HardlinkTarget { .. })));
    assert!(matches!(tree.hardlink(&other, &path("b")), Err(TreeError::HardlinkDirectory { .. })));
    assert!(matches!(tree.hardlink(&other, &path("/")), Err(TreeError::HardlinkDirectory { .. })));
    // A link that replaces the directory of its target.
    let parent = tree.locate(&path("b")).unwrap();
    tree.hardlink(&parent, &path("b/c")).unwrap();
    assert_eq!(paths(&tree), ["b"]);
    assert_eq!(tree.get(&parent).unwrap().nlink, 1);
}

#[test]
fn the_root_stays_a_directory_and_takes_attributes() {
    let mut tree = Tree::new();
    dir(&mut tree, "./", 0o711);
    assert_eq!(tree.inode(Tree::ROOT).attributes.mode, 0o711);
    let root = tree.locate(&path("/")).unwrap();
    assert_eq!(tree.insert(&root, Attributes::plain(0), Content::Fifo), Err(TreeError::RootReplaced));
    assert_eq!(
        tree.hardlink(&root, &path("a")).unwrap_err(),
        TreeError::HardlinkTarget { target: "a".into() }
    );
}

#[test]
fn depth_and_metadata_are_capped() {
    let mut tree = Tree::new();
    assert!(tree.locate(&path(&"d/".repeat(MAX_DEPTH))).is_ok());
    assert_eq!(tree.locate(&path(&"d/".repeat(MAX_DEPTH + 2))).unwrap_err(), TreeError::TooDeep);
    let mut tree = Tree::new();
    let target: Box<[u8]> = vec![b'x'; MAX_TARGET_LEN].into();
    let refused = (0..20_000).find_map(|number| {
        let name = format!("l{number}");
        let place = tree.locate(&path(&name)).unwrap();
        tree.insert(&place, Attributes::plain(0o777), Content::Symlink(target.clone())).err()
    });
    assert_eq!(refused, Some(TreeError::TooMuchMetadata));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Fifo(String),
        Dir(String),
        Link(String, String),
        Hard(String, String),
        White(String, String),
        Opaque(String),
        Layer,
    }

    fn names() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
            .prop_map(|parts| parts.join("/"))
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            names().prop_map(Op::Fifo),
            names().prop_map(Op::Dir),
            (names(), prop_oneof![Just("../.."), Just("/"), Just("a"), Just("b/c"), Just("/c/../a")])
                .prop_map(|(a, b)| Op::Link(a, b.to_owned())),
            (names(), names()).prop_map(|(a, b)| Op::Hard(a, b)),
            (names(), prop_oneof![Just("a"), Just("b")]).prop_map(|(a, b)| Op::White(a, b.to_owned())),
            names().prop_map(Op::Opaque),
            Just(Op::Layer),
        ]
    }

    proptest! {
        /// Counters agree with a count, no inode is lost, and an error leaves a consistent tree.
        #[test]
        fn books_are_kept(ops in proptest::collection::vec(op(), 0..60)) {
            let mut tree = Tree::new();
            for op in ops {
                let at = |tree: &mut Tree, p: &str| tree.locate(&path(p));
                drop(match op {
                    Op::Fifo(p) => at(&mut tree, &p).and_then(|place| tree.insert(&place, Attributes::plain(0), Content::Fifo)),
                    Op::Dir(p) => at(&mut tree, &p).and_then(|place| tree.put_directory(&place, Attributes::plain(0))),
                    Op::Link(p, t) => at(&mut tree, &p)
                        .and_then(|place| tree.insert(&place, Attributes::plain(0), Content::Symlink(t.as_bytes().into()))),
                    Op::Hard(p, t) => at(&mut tree, &p).and_then(|place| tree.hardlink(&place, &path(&t))),
                    Op::White(p, n) => tree.whiteout(&path(&p), n.as_bytes()),
                    Op::Opaque(p) => tree.opaque(&path(&p)),
                    Op::Layer => { tree.begin_layer(); Ok(()) }
                });
                let mut names = vec![0u32; tree.id_bound()];
                let (mut count, mut metadata, mut stack) = (0, 0, vec![Tree::ROOT]);
                while let Some(id) = stack.pop() {
                    for (name, entry) in tree.entries(id) {
                        count += 1;
                        metadata += name.len();
                        names[entry.inode.index()] += 1;
                        let inode = tree.inode(entry.inode);
                        if names[entry.inode.index()] == 1 {
                            metadata += weight(&inode.content);
                            stack.push(entry.inode);
                        }
                    }
                }
                prop_assert_eq!(count, tree.len());
                prop_assert_eq!(metadata, tree.metadata);
                for (index, inode) in tree.inodes.iter().enumerate().skip(1) {
                    prop_assert_eq!(inode.as_ref().map_or(0, |inode| inode.nlink), names[index]);
                }
            }
        }
    }
}
