//! Output as the book shows it, and as it is: which differences do not count.

/// A line as it is compared: numbers are any numbers, and as many; blanks any blanks; the kernel and
/// the engine those that the machine has.
pub fn masked(line: &str) -> String {
    let words = line.split_whitespace().map(|word| match word.trim_end_matches(',') {
        "qemu-tcg" | "qemu-kvm" | "kvm" => "ENGINE,",
        release if release.ends_with("amd64") => "KERNEL",
        _ => word,
    });
    let mut out = String::new();
    for c in words.collect::<Vec<_>>().join(" ").chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '.' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    // How many tasks wait in a lane differs; that there are some does not.
    while out.contains("#, #") {
        out = out.replace("#, #", "#");
    }
    out
}

/// Whether lines are those that are shown, in which `..` stands for any.
pub fn is_shown(shown: &[String], lines: &[String]) -> bool {
    match (shown.first(), lines.first()) {
        (None, None) => true,
        (Some(dots), _) if dots == ".." => {
            (0..=lines.len()).any(|skip| is_shown(&shown[1..], &lines[skip..]))
        }
        (Some(a), Some(b)) => a == b && is_shown(&shown[1..], &lines[1..]),
        _ => false,
    }
}
