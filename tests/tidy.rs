//! Rules about the tree itself: layers, lengths, names, banned calls, files that nobody compiles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FUNCTION_LINES_MAX: usize = 100;
const FILE_LINES_MAX: usize = 900;
const VAGUE_NAMES: [&str; 5] = ["manager", "helper", "util", "common", "misc"];

#[test]
fn imports_go_to_a_lower_layer_only() {
    let layers = layer_table();
    let mut wrong = Vec::new();
    for file in sources("src") {
        let folder = file.folder();
        let own = layers.get(&folder).copied().unwrap_or(u32::MAX);
        for (target, line) in file.imports() {
            let known = layers.get(&target).copied();
            if target != folder && known.is_none_or(|layer| layer >= own) {
                wrong.push(format!(
                    "{}:{line}: `{folder}` may not import `{target}`",
                    file.name
                ));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn every_folder_stands_in_the_layer_table() {
    let layers = layer_table();
    let folders = sources("src")
        .into_iter()
        .map(|file| file.folder())
        .filter(|folder| folder != "lib");
    assert_none(
        folders
            .filter(|folder| !layers.contains_key(folder))
            .collect(),
    );
}

#[test]
fn no_path_climbs_out_of_its_folder() {
    let climbs = |line: &str| line.contains("super::super");
    assert_none(lines_with(sources("src"), climbs));
}

#[test]
fn functions_are_short() {
    let mut lengths = Vec::new();
    for file in sources("src").iter().chain(&sources("tests/it")) {
        lengths.extend(
            file.functions()
                .map(|(name, lines)| (lines, format!("{} {name}", file.name))),
        );
    }
    lengths.sort();
    let median = lengths
        .get(lengths.len() / 2)
        .map_or(0, |(lines, _)| *lines);
    println!(
        "{} functions, median {median} lines; the longest:",
        lengths.len()
    );
    lengths
        .iter()
        .rev()
        .take(10)
        .for_each(|(lines, name)| println!("{lines:5} {name}"));
    let long = lengths
        .into_iter()
        .filter(|(lines, _)| *lines > FUNCTION_LINES_MAX);
    assert_none(
        long.map(|(lines, name)| format!("{name}: {lines} lines"))
            .collect(),
    );
}

#[test]
fn files_are_short() {
    let files = sources("src").into_iter().chain(sources("tests/it"));
    let long = files.map(|file| (file.text.lines().count(), file.name));
    assert_none(
        long.filter(|(lines, _)| *lines > FILE_LINES_MAX)
            .map(|(_, name)| name)
            .collect(),
    );
}

#[test]
fn names_of_files_and_modules_say_something() {
    let vague = |name: &str| {
        name.split(['_', '/', '.'])
            .any(|word| VAGUE_NAMES.contains(&word.trim_end_matches('s')))
    };
    let files = sources("src").into_iter().chain(sources("tests"));
    let mut wrong = Vec::new();
    for file in files {
        wrong.extend(vague(&file.name).then(|| file.name.clone()));
        let modules = file.modules().into_iter().filter(|module| vague(module));
        wrong.extend(modules.map(|module| format!("{}: mod {module}", file.name)));
    }
    assert_none(wrong);
}

#[test]
fn nothing_is_left_undone() {
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    let marked = |line: &str| marks.iter().any(|mark| line.contains(mark));
    assert_none(lines_with(
        sources("src").into_iter().chain(sources("tests")),
        marked,
    ));
}

#[test]
fn tests_wait_for_events_not_for_time() {
    let files = sources("tests/it")
        .into_iter()
        .filter(|file| !file.name.ends_with("support/wait.rs"));
    let sleeps = |line: &str| line.replace("pg_sleep(", "").contains("sleep(");
    assert_none(lines_with(files, sleeps));
}

#[test]
fn every_source_file_is_compiled() {
    for (tree, roots) in [
        ("src", &["src/lib.rs", "src/main.rs"][..]),
        ("tests/it", &["tests/it/main.rs"]),
    ] {
        let mut reached = BTreeSet::new();
        roots
            .iter()
            .for_each(|root| reach(Path::new(root), &mut reached));
        let files = sources(tree).into_iter().map(|file| file.name);
        assert_none(files.filter(|name| !reached.contains(name)).collect());
    }
}

#[track_caller]
fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// One Rust file of the tree.
struct Source {
    /// Path from the root of the package.
    name: String,
    text: String,
}

impl Source {
    /// The folder below `src`, or the name of a file right in it.
    fn folder(&self) -> String {
        let below = self.name.trim_start_matches("src/");
        below
            .split('/')
            .next()
            .unwrap_or(below)
            .trim_end_matches(".rs")
            .to_owned()
    }

    /// Lines with their numbers, without comments and without the test module at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self
            .text
            .find("#[cfg(test)]\nmod ")
            .unwrap_or(self.text.len());
        let lines = self.text[..tests].lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(n, line)| (n + 1, line))
    }

    /// The folders that this file reaches into by `crate::`, with line numbers.
    fn imports(&self) -> Vec<(String, usize)> {
        let mut code = String::new();
        let mut starts = Vec::new();
        for (number, line) in self.code() {
            starts.push((code.len(), number));
            code.push_str(line);
            code.push('\n');
        }
        let line_of = |at: usize| {
            starts
                .iter()
                .rev()
                .find(|(start, _)| *start <= at)
                .map_or(0, |(_, n)| *n)
        };
        let mut found = Vec::new();
        for prefix in ["crate::", "ringbouncer::"] {
            for (at, _) in code.match_indices(prefix) {
                // `$crate` and names that merely end like the prefix are somebody else's.
                if !code[..at]
                    .ends_with(|before: char| before.is_alphanumeric() || "_$".contains(before))
                {
                    let targets = first_segments(&code[at + prefix.len()..]);
                    found.extend(targets.into_iter().map(|target| (target, line_of(at))));
                }
            }
        }
        found
    }

    /// Name and length in lines of every function; relies on the formatter's indentation.
    fn functions(&self) -> impl Iterator<Item = (&str, usize)> {
        let lines: Vec<&str> = self.text.lines().collect();
        (0..lines.len()).filter_map(move |start| {
            let name = function_name(lines[start])?;
            let indent = lines[start].len() - lines[start].trim_start().len();
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|line| *line == end)?;
            let ends_here = lines[start].ends_with([';', '}']);
            Some((name, if ends_here { 1 } else { length + 1 }))
        })
    }

    /// The names in `mod name;` and `mod name {`.
    fn modules(&self) -> Vec<String> {
        let module = |line: &str| {
            let line = line
                .trim()
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ");
            let name = line.strip_prefix("mod ")?.split([';', ' ']).next()?;
            Some(name.to_owned())
        };
        self.text.lines().filter_map(module).collect()
    }
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let qualifiers = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "async",
        "const",
        "unsafe",
        "extern",
        "\"C\"",
    ];
    let is_head = before
        .split_whitespace()
        .all(|word| qualifiers.contains(&word));
    is_head.then(|| after.split(['(', '<']).next().unwrap_or(after))
}

/// The first path segments of what follows `crate::`: one name, or those of a brace group.
fn first_segments(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![word(rest)];
    };
    let mut depth = 0;
    let mut found = vec![word(group)];
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(word(&group[at + 1..])),
            _ => {}
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Folder to line, from the table at the top of the crate.
fn layer_table() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut layers = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split(" | ");
        let Some(Ok(layer)) = cells.next().map(str::parse::<u32>) else {
            continue;
        };
        let names = cells
            .next()
            .unwrap_or_default()
            .split('`')
            .skip(1)
            .step_by(2);
        layers.extend(names.map(|name| {
            (
                name.trim_end_matches(".rs")
                    .trim_end_matches('/')
                    .to_owned(),
                layer,
            )
        }));
    }
    assert!(
        layers.len() > 10,
        "the table in src/lib.rs was not understood: {layers:?}"
    );
    layers
}

fn lines_with(
    files: impl IntoIterator<Item = Source>,
    wrong: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let lines = file
            .text
            .lines()
            .enumerate()
            .filter(|(_, line)| wrong(line));
        found.extend(
            lines.map(|(number, line)| format!("{}:{}: {}", file.name, number + 1, line.trim())),
        );
    }
    found
}

/// Adds `file` and all that its `mod` lines name.
fn reach(file: &Path, reached: &mut BTreeSet<String>) {
    let Ok(text) = fs::read_to_string(root().join(file)) else {
        return;
    };
    let name = file.to_str().unwrap().to_owned();
    if !reached.insert(name.clone()) {
        return;
    }
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let parent = file.parent().unwrap();
    let folder = if ["lib", "main", "mod"].contains(&stem) {
        parent.into()
    } else {
        parent.join(stem)
    };
    for module in (Source { name, text }).modules() {
        reach(&folder.join(format!("{module}.rs")), reached);
        reach(&folder.join(&module).join("mod.rs"), reached);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the package; the fuzzing package has rules of its own.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("fuzz") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Source {
                    name,
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
