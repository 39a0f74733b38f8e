// Moves runs of words from one buffer to another, or zeroes them: many at once, where copies of a command encoder would wait for one another.
// No run of a dispatch shares a word with another. Dispatch [any, runs], 64 threads.
struct Run {
  from_: u32,       // index of the first word; ZERO: zeros
  to: u32,
  count: u32,       // words
}
const ZERO = 0xffffffffu;
@group(0) @binding(0) var<storage, read> runs: array<Run>;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read_write> target_: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let run = runs[id.y];
  for (var i = id.x * 64u + thread; i < run.count; i += 64u * groups.x) {
    if (run.from_ == ZERO) { target_[run.to + i] = 0u; } else { target_[run.to + i] = source[run.from_ + i]; }
  }
}
