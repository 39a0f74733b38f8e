// Over each 32 lanes of a workgroup, the same in all of them: after lanes-subgroup.wgsl or lanes-workgroup.wgsl, which exchange.
fn maximumOf(x: f32, lane: u32) -> f32 {
  let a = max(x, swap1(x, lane, 16u));
  let b = max(a, swap1(a, lane, 8u));
  let c = max(b, swap1(b, lane, 4u));
  let d = max(c, swap1(c, lane, 2u));
  return max(d, swap1(d, lane, 1u));
}
fn sumOf(x: f32, lane: u32) -> f32 {
  let a = x + swap1(x, lane, 16u);
  let b = a + swap1(a, lane, 8u);
  let c = b + swap1(b, lane, 4u);
  let d = c + swap1(c, lane, 2u);
  return d + swap1(d, lane, 1u);
}
fn swap4(x: vec4<f32>, lane: u32, mask: u32) -> vec4<f32> { return vec4(swap2(x.xy, lane, mask), swap2(x.zw, lane, mask)); }
