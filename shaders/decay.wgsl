// mass = floor((mass * numerator + 2^15) / 2^16) of u16. Dispatch [any, ranges], 64 threads.
struct Range {
  first: u32,       // word index of the first two masses
  count: u32,       // words
  numerator: u32,   // at most 65536
}
@group(0) @binding(0) var<storage, read> ranges: array<Range>;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;      // the cache

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let range = ranges[id.y];
  for (var i = id.x * 64u + thread; i < range.count; i += 64u * groups.x) {
    let pair = words[range.first + i];
    let low = ((pair & 0xffffu) * range.numerator + 0x8000u) >> 16u;
    let high = ((pair >> 16u) * range.numerator + 0x8000u) >> 16u;
    words[range.first + i] = low | (high << 16u);
  }
}
