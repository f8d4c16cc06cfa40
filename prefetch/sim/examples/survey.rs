//! Which promises are broken, how often, and in which seed first.
use std::collections::BTreeMap;
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let to: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(2000);
    let mut kinds: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    for seed in 0..to {
        let ran = std::panic::catch_unwind(|| {
            inlay_prefetch_sim::run(inlay_prefetch_sim::random_scenario(seed))
        });
        let Err(error) = ran else { continue };
        let text = error
            .downcast_ref::<String>()
            .cloned()
            .or(error.downcast_ref::<&str>().map(|s| s.to_string()))
            .unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().to_owned();
        let kind: String = line
            .split(": ")
            .skip(1)
            .collect::<String>()
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .take(70)
            .collect();
        kinds.entry(kind).or_insert((0, seed, line)).0 += 1;
    }
    for (count, seed, line) in kinds.values() {
        println!("{count:>5} seed {seed}: {}", line.chars().take(300).collect::<String>());
    }
}
