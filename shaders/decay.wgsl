// mass = floor(mass * numerator / 2^16). Dispatch [any, ranges], 64 threads.
struct Range {
  first: u32,       // word index of the first mass
  count: u32,
  numerator: u32,   // at most 65536
}
@group(0) @binding(0) var<storage, read> ranges: array<Range>;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;      // the cache

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let range = ranges[id.y];
  for (var i = id.x * 64u + thread; i < range.count; i += 64u * groups.x) {
    // In two halves: the product has up to 49 bits.
    let mass = words[range.first + i];
    words[range.first + i] = (mass >> 16u) * range.numerator + (((mass & 0xffffu) * range.numerator) >> 16u);
  }
}
