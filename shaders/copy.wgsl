// Copies runs of 16 bits within the cache, all apart from one another and none sharing a word with another. Dispatch [runs], 64 threads.
struct Run {
  from_: u32,       // index of the first 16 bits
  to: u32,
  count: u32,
}
@group(0) @binding(0) var<storage, read> runs: array<Run>;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;      // the cache

fn half(at: u32) -> u32 { return (words[at / 2u] >> ((at & 1u) * 16u)) & 0xffffu; }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let run = runs[id.x];
  let end = run.to + run.count;
  for (var w = run.to / 2u + thread; w * 2u < end; w += 64u) {
    // What the run does not cover of its first and last word stays.
    var low = half(w * 2u);
    var high = half(w * 2u + 1u);
    if (w * 2u >= run.to) { low = half(run.from_ + w * 2u - run.to); }
    if (w * 2u + 1u < end) { high = half(run.from_ + w * 2u + 1u - run.to); }
    words[w] = low | (high << 16u);
  }
}
