//! Modules of packaged kernels. Their files come from the Debian archive, by the lists with which the
//! kernel itself was fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cryoscope::kernel::KernelImage;

/// A file of the fetcher's private apt root.
fn of_apt(end: &str) -> PathBuf {
    let dir = super::cache().path().join("apt");
    let all = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let all = all.map(|entry| entry.expect("an entry").path());
    let newest = all
        .filter(|path| path.extension().is_some_and(|found| found == end))
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
    newest.unwrap_or_else(|| panic!("{} has no .{end}: fetch a kernel", dir.display()))
}

fn run(command: &mut Command) -> bool {
    let status = command.status();
    status.unwrap_or_else(|e| panic!("{command:?}: {e}")).success()
}

/// The unpacked modules of a kernel, fetched unless they are there.
pub fn files(image: &KernelImage, wanted: &[&str]) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("modules-{}", image.release));
    let path =
        |file: &str| dir.join(Path::new(file).file_name().expect("a name")).with_extension("ko");
    let all = || wanted.iter().map(|file| path(file)).collect();
    // Programs of tests run at the same time, and one that is done leaves all of them whole.
    fs::create_dir_all(&dir).expect("a directory");
    let turn = fs::File::create(dir.with_extension("lock")).expect("a lock");
    turn.lock().expect("a turn");
    if wanted.iter().all(|file| path(file).exists()) {
        return all();
    }
    let apt = super::cache().path().join("apt");
    let option = |name: &str, at: &Path| format!("-oDir::{name}={}", at.display());
    // Older packaging has modules beside the kernel.
    let fetched = ["linux-modules", "linux-image"].iter().any(|kind| {
        run(Command::new("apt-get")
            .arg(format!("-c={}", of_apt("conf").display()))
            .arg(option("State", &apt.join("state")))
            .arg(option("State::lists", &apt.join("lists")))
            .arg(option("Cache", &apt))
            .arg(option("Etc::sourcelist", &of_apt("sources")))
            .args(["-qq", "download", &format!("{kind}-{}", image.release)])
            .current_dir(&dir))
    });
    assert!(fetched, "the modules of {} cannot be fetched", image.release);
    for file in wanted {
        let script = format!(
            "dpkg-deb --fsys-tarfile *.deb | tar -xO --wildcards '*/{file}.ko*' > packed && \
             {{ xz -dc packed || cat packed; }} > {0}.part 2>/dev/null && mv {0}.part {0}",
            path(file).display()
        );
        assert!(run(Command::new("sh").args(["-c", &script]).current_dir(&dir)), "{file}");
    }
    for entry in fs::read_dir(&dir).expect("a directory").flatten() {
        if entry.path().extension().is_none_or(|end| end != "ko") {
            fs::remove_file(entry.path()).expect("it can be removed");
        }
    }
    all()
}
