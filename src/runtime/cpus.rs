//! How many threads a call uses that does not say.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::fork::{Section, generation};
use super::lock;
use crate::error::{Error, Result};

/// How long what the system allows is believed to stay so.
const KEPT: Duration = Duration::from_millis(100);

/// 0 stands for "not set".
static DEFAULT_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a call that does not say: what [`set_default_threads`] set, else `SPARSE_MIXER_NUM_THREADS`, else what
/// affinity and control-group quota allow, at most `OMP_NUM_THREADS`.
///
/// # Errors
/// If `SPARSE_MIXER_NUM_THREADS` is not a number of at least 1.
pub fn default_threads() -> Result<usize> {
    let set = DEFAULT_THREADS.load(Ordering::Relaxed);
    if set > 0 {
        return Ok(set);
    }
    if let Ok(text) = std::env::var("SPARSE_MIXER_NUM_THREADS") {
        return match text.trim().parse::<usize>() {
            Ok(n) if n >= 1 => Ok(n),
            _ => {
                Err(Error::value("SPARSE_MIXER_NUM_THREADS", format!("got {text:?}, expected a number >= 1")))
            }
        };
    }
    let omp = std::env::var("OMP_NUM_THREADS").ok().and_then(|text| text.trim().parse::<usize>().ok());
    Ok(allowed_cpus().min(omp.filter(|&limit| limit >= 1).unwrap_or(usize::MAX)))
}

/// What affinity and quota allow. Files tell the quota, too slow to be read again by every small call.
fn allowed_cpus() -> usize {
    static KNOWN: Mutex<Option<(u64, Instant, usize)>> = Mutex::new(None);
    let recent = {
        let _section = Section::enter();
        lock(&KNOWN).filter(|(process, at, _)| *process == generation() && at.elapsed() < KEPT)
    };
    if let Some((.., cpus)) = recent {
        return cpus;
    }
    // Affinity, and the quota where the standard library finds it.
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = available.min(quota_cpus(Path::new("/")).unwrap_or(usize::MAX));
    let _section = Section::enter();
    *lock(&KNOWN) = Some((generation(), Instant::now(), cpus));
    cpus
}

/// Sets the number of threads of calls that do not say; `None` goes back to the automatic choice.
pub fn set_default_threads(threads: Option<usize>) {
    DEFAULT_THREADS.store(threads.unwrap_or(0), Ordering::Relaxed);
}

/// CPUs that this process's control groups may use on average, rounded down but at least 1; `None` without a quota.
/// `root` is the file system to look in.
///
/// Both versions of control groups are understood, mounted as a container runtime mounts them: a process may see its
/// whole path below the mount, or only its own group as the mount's root. Quotas of parents count.
pub fn quota_cpus(root: &Path) -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let groups = read(&root.join("proc/self/cgroup"))?;
    let mounts = read(&root.join("proc/self/mountinfo"))?;
    let smallest = groups
        .lines()
        .filter_map(|line| {
            // hierarchy:controllers:path; version 2 has no controllers
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let kind = if controllers.is_empty() { Kind::Two } else { Kind::One };
            let counts = kind == Kind::Two || controllers.split(',').any(|name| name == "cpu");
            let (mount, mounted) = if counts { kind.mount(&mounts)? } else { return None };
            let mount = root.join(mount.strip_prefix('/')?);
            // What lies above the mounted part cannot be seen.
            let below = Path::new(path).strip_prefix(mounted).unwrap_or(Path::new(""));
            let groups = below.ancestors().map(|group| mount.join(group));
            groups.filter_map(|group: PathBuf| kind.quota(&group)).min_by(f64::total_cmp)
        })
        .min_by(f64::total_cmp)?;
    Some((smallest as usize).max(1))
}

/// Version of control groups.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    One,
    Two,
}

impl Kind {
    /// Where its CPU controller is mounted, and which part of the hierarchy is.
    fn mount(self, mounts: &str) -> Option<(&str, &str)> {
        mounts.lines().find_map(|line| {
            // id parent device root mount-point options ... - type source options
            let (own, system) = line.split_once(" - ")?;
            let mut own = own.split(' ').skip(3);
            let (mounted, point) = (own.next()?, own.next()?);
            let mut system = system.split(' ');
            let fits = match (self, system.next()?) {
                (Kind::Two, "cgroup2") => true,
                (Kind::One, "cgroup") => system.nth(1)?.split(',').any(|option| option == "cpu"),
                _ => false,
            };
            fits.then_some((point, mounted))
        })
    }

    /// CPUs that `group` by itself may use.
    fn quota(self, group: &Path) -> Option<f64> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let (quota, period) = match self {
            Kind::Two => {
                let text = read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.to_owned(), period.to_owned())
            }
            Kind::One => (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
        };
        // "max", or -1 in version 1: no limit.
        let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    }
}

#[cfg(test)]
#[cfg(not(miri))] // Miri has no files.
mod tests {
    use super::*;

    /// A file system with these files.
    fn system(name: &str, files: &[(impl AsRef<Path>, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("sparse-mixer-cpus-{name}-{}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    const TWO: &str =
        "24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const ONE: &str = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                       31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
    const DOCKER_ONE: &str =
        "31 24 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn quotas_are_found() {
        let two = |mounts, group: &'static str, file: &'static str, max: &'static str| {
            [("proc/self/mountinfo", mounts), ("proc/self/cgroup", group), (file, max)]
                .map(|(name, content)| (name.to_owned(), content))
                .to_vec()
        };
        let one = |mounts, group: &'static str, folder: &str, quota: &'static str| {
            let file = |name: &str| format!("sys/fs/cgroup/cpu,cpuacct/{folder}{name}");
            vec![
                ("proc/self/mountinfo".to_owned(), mounts),
                ("proc/self/cgroup".to_owned(), group),
                (file("cpu.cfs_quota_us"), quota),
                (file("cpu.cfs_period_us"), "100000\n"),
            ]
        };
        let own = "sys/fs/cgroup/cpu.max";
        let cases = [
            ("half", two(TWO, "0::/\n", own, "50000 100000\n"), Some(1)),
            ("one", two(TWO, "0::/\n", own, "100000 100000\n"), Some(1)),
            ("two", two(TWO, "0::/\n", own, "200000 100000\n"), Some(2)),
            ("between", two(TWO, "0::/\n", own, "350000 100000\n"), Some(3)),
            ("other period", two(TWO, "0::/\n", own, "80000 20000\n"), Some(4)),
            ("unlimited", two(TWO, "0::/\n", own, "max 100000\n"), None),
            ("no file", two(TWO, "0::/\n", "sys/fs/cgroup/other", ""), None),
            ("nonsense", two(TWO, "0::/\n", own, "many\n"), None),
            ("of a parent", two(TWO, "0::/a/b\n", "sys/fs/cgroup/a/cpu.max", "300000 100000\n"), Some(3)),
            ("of another", two(TWO, "0::/a/b\n", "sys/fs/cgroup/c/cpu.max", "300000 100000\n"), None),
            ("version 1", one(ONE, "5:memory:/\n4:cpu,cpuacct:/a\n", "a/", "250000\n"), Some(2)),
            ("version 1, unlimited", one(ONE, "4:cpu,cpuacct:/a\n", "a/", "-1\n"), None),
            ("docker", one(DOCKER_ONE, "4:cpuacct,cpu:/docker/abc\n", "", "150000\n"), Some(1)),
            ("docker, path unseen", one(DOCKER_ONE, "4:cpu,cpuacct:/elsewhere\n", "", "400000\n"), Some(4)),
            ("cpuset only", one(ONE, "4:cpuset:/a\n", "a/", "100000\n"), None),
        ];
        for (name, files, expected) in cases {
            let root = system(&name.replace([' ', ','], "-"), &files);
            assert_eq!(quota_cpus(&root), expected, "{name}");
            std::fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let files = [
            ("proc/self/mountinfo", TWO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "800000 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "200000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        ];
        let root = system("nested", &files);
        assert_eq!(quota_cpus(&root), Some(2));
        std::fs::remove_dir_all(root).unwrap();
    }
}
