// Exchange within each 32 lanes of a workgroup: its subgroups.
diagnostic(off, subgroup_uniformity);
fn swap2(x: vec2<f32>, lane: u32, mask: u32) -> vec2<f32> { return subgroupShuffleXor(x, mask); }
fn swapU(x: vec2<u32>, lane: u32, mask: u32) -> vec2<u32> { return subgroupShuffleXor(x, mask); }
fn swapI(x: i32, lane: u32, mask: u32) -> i32 { return subgroupShuffleXor(x, mask); }
fn swap1(x: f32, lane: u32, mask: u32) -> f32 { return subgroupShuffleXor(x, mask); }
/// How far a loop goes that exchanges: as far as it must.
fn stepsOf(count: u32, most: u32) -> u32 { return count; }
