// Exchange within each 32 lanes of a workgroup through its memory, where there are no subgroups of 32.
var<workgroup> exchange: array<vec2<u32>, WARPS * 32u>;
fn swapU(x: vec2<u32>, lane: u32, mask: u32) -> vec2<u32> {
  workgroupBarrier();
  exchange[lane] = x;
  workgroupBarrier();
  return exchange[lane ^ mask];
}
fn swap2(x: vec2<f32>, lane: u32, mask: u32) -> vec2<f32> { return bitcast<vec2<f32>>(swapU(bitcast<vec2<u32>>(x), lane, mask)); }
fn swapI(x: i32, lane: u32, mask: u32) -> i32 { return bitcast<i32>(swapU(vec2(bitcast<u32>(x), 0u), lane, mask).x); }
fn swap1(x: f32, lane: u32, mask: u32) -> f32 { return swap2(vec2(x, 0.0), lane, mask).x; }
/// How far a loop goes that exchanges: equally far in all lanes, as far as a compiler sees.
fn stepsOf(count: u32, most: u32) -> u32 { return most; }
