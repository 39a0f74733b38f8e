// As attend.wgsl, for heads of 64 or 128 channels: attention of one query row and kvHead over one split, whose blocks of 4 tokens run past without a
// barrier. LANES lanes take a block, its keys and then its values, and keep a softmax of their own until the end: scores pass from lane to lane by
// exchanges alone. Where blocks lie stands in a table (attend-describe.wgsl). One workgroup of WARPS * 32 lanes.
//
// Codes are multiplied as the integers that they stand for (dot4I8Packed, exact): queries have 8 bits a channel (15 for keys of 8 bits), relative to their
// largest. Weights of a block have 7 bits (15 for values of 8), times a power of two. So it is in the WebAssembly kernels, too. Logarithms are binary: the
// queries are scaled by log2(e), and a lane's reference E is a whole number, above the largest score plus logarithm of a value's scale until now; sums of
// values are integers in units of 2^E / UNIT, shifted when E grows.
// `// each $x` ... `// end $x` stands for its lines once for each x (webgpu-prelude.ts, unroll): heads h < GROUP, pairs of chunks p < PAIRS, tokens
// t < 4.
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;    // blocks of segments and exact parts
@group(0) @binding(2) var<storage, read> words: array<u32>;          // the same buffer
@group(0) @binding(3) var<storage, read> queries: array<f32>;
@group(0) @binding(4) var<storage, read> items: array<Item>;
@group(0) @binding(5) var<storage, read> splits: array<Split>;
@group(0) @binding(6) var<storage, read> table: array<vec4<u32>>;    // as attend-describe.wgsl writes it
@group(0) @binding(7) var<storage, read_write> partials: array<f32>; // [split, row, head]: maximum, sum, HEAD_DIM values
@group(0) @binding(8) var<storage, read_write> scoresOut: array<f32>; // [row, head, scoreStride]; padding cells NEVER

const WIDTH = WARPS * 32u;
/// Lanes of a block of codes, PAIRS pairs of chunks each; of a block of floats, 8 channels each.
const LANES = HEAD_DIM / (8u * PAIRS);
const TEAMS = WIDTH / LANES;
const VECS = HEAD_DIM / 8u;
const FLOAT_TEAMS = WIDTH / VECS;
/// 15-bit integers: 256 * a signed byte + another.
const FINE_MOST = 32512.0;
/// A weight of 1: 7 bits, shifted by 8.
const UNIT = 32512.0;
const PLACE = 0x7ffffffu;
const LOG2_E = 1.44269504f;
const LN_2 = 0.69314718f;
/// Before anything was seen; and what a zero vector's scale counts as, so that no sum of weights grows out of a float.
const LOWEST = -1.0e9;
const LEAST_SCALE = -40.0;

/// [pair of codes][replica]: levels of both as bytes 0 and 2; 4 bits from entry 0, 3 bits from entry 256 on. At the end, values as
/// [warp][head][channel], relative to the warp's reference. Little of this memory lets many workgroups stay on a multiprocessor.
var<workgroup> shared_: array<u32, max(320u * REPLICAS, WARPS * GROUP * HEAD_DIM)>;
/// The queries, scaled: floats, and integers (high and low bytes of channels 0, 1, 4, 5 and of 2, 3, 6, 7 of a vector).
var<workgroup> qFloat: array<vec4<f32>, GROUP * VECS * 2u>;
var<workgroup> qInteger: array<vec4<u32>, GROUP * VECS>;
/// [head]: what an integer of a query stands for.
var<workgroup> qStep: array<f32, GROUP>;
/// [record]: logarithms of the bases of scales, keys' and values'.
var<workgroup> bases: array<vec2<f32>, SEGMENTS>;
/// [record][head]: the query times the segment's mean.
var<workgroup> qMean: array<f32, SEGMENTS * GROUP>;
/// [warp][head]: reference and sum.
var<workgroup> perWarp: array<vec2<f32>, WARPS * GROUP>;

fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }
fn pack4(x: vec4<i32>) -> u32 {
  let b = bitcast<vec4<u32>>(x) & vec4(255u);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
/// Bytes that 4 integers within -FINE_MOST..FINE_MOST are: high ones, low ones.
fn split4(x: vec4<i32>) -> vec2<u32> {
  let low = ((x + vec4(128)) & vec4(255)) - vec4(128);
  return vec2(pack4((x - low) >> vec4(8u)), pack4(low));
}

/// A byte of up to 16, 4 in each word.
fn byteOf(four: vec4<u32>, code: u32) -> u32 {
  let word = select(select(four.x, four.y, code >= 4u), select(four.z, four.w, code >= 12u), code >= 8u);
  return (word >> ((code & 3u) * 8u)) & 255u;
}
fn fillLut(lane: u32) {
  for (var entry = lane; entry < 256u; entry += WIDTH) {
    let pair = byteOf(LEVELS_4, entry & 15u) | (byteOf(LEVELS_4, entry >> 4u) << 16u);
    for (var r = 0u; r < REPLICAS; r++) { shared_[(entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
  }
  // Two bits of both codes, then the third of both.
  for (var entry = lane; entry < 64u; entry += WIDTH) {
    let first = (entry & 3u) | ((entry >> 2u) & 4u);
    let second = ((entry >> 2u) & 3u) | ((entry >> 3u) & 4u);
    let pair = byteOf(LEVELS_3, first) | (byteOf(LEVELS_3, second) << 16u);
    for (var r = 0u; r < REPLICAS; r++) { shared_[LUT_3 + (entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
  }
}
/// Levels of a word's 4 pairs: bytes (0 low, 1 low, 0 high, 1 high), then 2 and 3; "low" is the code in the lower bits. No index leaves the table, as a
/// compiler can see.
fn levels4(pairs: u32, replica: u32) -> vec2<u32> {
  if (!LOOKUPS) { return vec2(pairs & 0x3f3f3f3fu, (pairs >> 1u) & 0x3f3f3f3fu); }
  let a = shared_[((pairs << LOG_REPLICAS) & MASK_4) | replica];
  let b = shared_[((pairs >> (8u - LOG_REPLICAS)) & MASK_4) | replica];
  let c = shared_[((pairs >> (16u - LOG_REPLICAS)) & MASK_4) | replica];
  let d = shared_[((pairs >> (24u - LOG_REPLICAS)) & MASK_4) | replica];
  return vec2(b * 256u + a, d * 256u + c);
}
fn levels3(pairs: u32, replica: u32) -> vec2<u32> {
  if (!LOOKUPS) { return vec2(pairs & 0x3f3f3f3fu, (pairs >> 1u) & 0x3f3f3f3fu); }
  let a = shared_[(((pairs << LOG_REPLICAS) & MASK_3) | replica) + LUT_3];
  let b = shared_[(((pairs >> (8u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
  let c = shared_[(((pairs >> (16u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
  let d = shared_[(((pairs >> (24u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
  return vec2(b * 256u + a, d * 256u + c);
}
const MASK_4 = 255u << LOG_REPLICAS;
const MASK_3 = 63u << LOG_REPLICAS;
const LUT_3 = 256u << LOG_REPLICAS;
/// Codes y of 2 bits at bits 0 and 1 of the bytes as 0, 7, 13, 20, a quarter of the level plus 10: 7 * y - (y >> 1). At bits 2 and 3 four times that.
fn two(x: u32) -> u32 { return (x & 0x03030303u) * 7u - ((x >> 1u) & 0x01010101u); }
fn twoFold(x: u32) -> u32 { return (x & 0x0c0c0c0cu) * 7u - ((x >> 1u) & 0x04040404u); }
/// Of 1 bit as 0, 80: the level, plus 40.
fn one(s: u32) -> u32 { return (s & 0x01010101u) * 80u; }
/// Words of two chunks, ordered as `levels4` does; and back.
fn inPairs(a: u32, b: u32) -> vec2<u32> { return vec2((a & 0xffffu) | (b << 16u), (a >> 16u) | (b & 0xffff0000u)); }
fn dots(a: vec4<u32>, b: u32) -> vec4<i32> {
  return vec4(dot4I8Packed(a.x, b), dot4I8Packed(a.y, b), dot4I8Packed(a.z, b), dot4I8Packed(a.w, b));
}
fn swapWord(x: u32, lane: u32, mask: u32) -> u32 { return bitcast<u32>(swapI(bitcast<i32>(x), lane, mask)); }
fn total(x: u32) -> i32 { return dot4I8Packed(x, 0x01010101u); }

fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }
/// The vectors that hold a lane's pairs of chunks of a half block of codes, from pair g on; of more, the first two.
fn firstVector(half: u32, g: u32) -> u32 {
  let nibble = half >> 27u;
  // 8 bits: 2 vectors a pair, 4: 1, 3 and 2: half a vector, 1: a quarter.
  let at = select(select(select(g / 4u, g / 2u, nibble >= 2u), g, nibble >= 4u), g * 2u, nibble >= 8u);
  return (half & PLACE) + at;
}
fn secondVector(half: u32, g: u32, first: u32) -> u32 {
  let nibble = half >> 27u;
  // Vectors of the third bit of 3-bit codes come behind those of the lower two.
  let third = (half & PLACE) + HEAD_DIM / 16u + g / 4u;
  return select(select(first + select(0u, 1u, PAIRS == 2u || nibble == 8u), third, nibble == 3u), first, nibble < 3u);
}
/// Pairs of codes of 3 bits.
fn threes(low: u32, high: u32, g: u32) -> u32 {
  return ((low >> ((g & 1u) * 4u)) & 0x0f0f0f0fu) | (((high >> ((g & 3u) * 2u)) & 0x03030303u) << 4u);
}
/// Logarithm of a level's unit, for scales of 1 to 4 bits, and of the least scale code.
fn unitLog(nibble: u32) -> f32 {
  return select(select(select(log2(UNIT_INVERSE_1), log2(UNIT_INVERSE_2), nibble == 2u), log2(UNIT_INVERSE_3), nibble == 3u), log2(UNIT_INVERSE_4), nibble == 4u) - 255.0 / 32.0;
}
/// Which word of a block's scales a token's is in, and the logarithm of what stands there.
fn scaleWord(nibble: u32, token: u32) -> u32 { return select(0u, token / 2u, nibble == 8u); }
fn scaleLog(word: u32, nibble: u32, token: u32, base: f32) -> f32 {
  if (nibble == 8u) {
    let pair = unpack2x16float(word);
    return log2(max(select(pair.x, pair.y, (token & 1u) != 0u), 1e-30));
  }
  let code = (word >> (token * 8u)) & 255u;
  return select(f32(code) * 0.03125 + (base + unitLog(nibble)), -200.0, code == 0u);
}
struct Floats { low: vec4<f32>, high: vec4<f32> }
fn floats16(v: vec4<u32>) -> Floats { return Floats(halves(v.x, v.y), halves(v.z, v.w)); }
fn floats32(at: u32) -> Floats { return Floats(bitcast<vec4<f32>>(cache[at]), bitcast<vec4<f32>>(cache[at + 1u])); }

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  let row = id.z;
  let warp = lane / 32u;
  let own = lane & 31u;
  let replica = lane & (REPLICAS - 1u);
  let exact = split.count == 0u;

  // A warp makes a head's integers, a lane a vector's.
  for (var turn = 0u; turn < (GROUP + WARPS - 1u) / WARPS; turn++) {
    let head = min(turn * WARPS + warp, GROUP - 1u);
    var a = vec4<f32>();
    var b = vec4<f32>();
    if (own < VECS) {
      let at = split.q + (row * HEADS + kvHead * GROUP + head) * HEAD_DIM + own * 8u;
      let scale = params.scale * LOG2_E;
      a = scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
      b = scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
    let m = max(abs(a), abs(b));
    let largest = maximumOf(max(max(m.x, m.y), max(m.z, m.w)), lane);
    let inverse = select(FINE_MOST / largest, 0.0, largest < 1e-30);
    if (own < VECS) {
      let x = split4(vec4<i32>(round(vec4(a.x, a.y, b.x, b.y) * inverse)));
      let y = split4(vec4<i32>(round(vec4(a.z, a.w, b.z, b.w) * inverse)));
      qInteger[head * VECS + own] = vec4(x, y);
      qFloat[(head * VECS + own) * 2u] = a;
      qFloat[(head * VECS + own) * 2u + 1u] = b;
    }
    if (own == 0u) { qStep[head] = largest / FINE_MOST; }
  }
  if (!exact) { fillLut(lane); }
  workgroupBarrier();

  let tableAt = (id.x * KV_HEADS + kvHead) * TABLE;
  // A piece of the exact part reads as one group of floats.
  let seen = min(split.to, max(item.visible + row, split.first) - split.first);
  let hidden = select(0u, split.from_, exact);
  let mostCells = select(SEGMENTS * MAX_CELLS, split.to, exact);
  let head = table[tableAt];
  let count = select(head.x, (seen + 3u) / 4u, exact);
  let firstCoded = select(head.y, count, exact);
  let fineEnd = select(head.z, count, exact);
  // A lane without a block repeats the last one, unheard.
  let lastBlock = max(count, 1u) - 1u;
  let blocksAt = tableAt + 1u + SEGMENTS;
  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;
  // The queries times the means, a lane 8 channels.
  for (var first = 0u; first < SEGMENTS; first += WIDTH / VECS) {
    let r = first + lane / VECS;
    let v = lane % VECS;
    let heard = r < split.count;
    var x = vec2<u32>();
    var step = 0.0;
    if (heard) {
      let record = table[tableAt + 1u + r];
      x = inPairs(words[record.x + v * 2u], words[record.x + v * 2u + 1u]);
      step = unpack2x16float(record.z).x;
      if (v == 0u) { bases[r] = log2(max(unpack2x16float(record.y), vec2(1e-30))); }
    }
    // each $h
    {
      let q = qInteger[$hu * VECS + v];
      var sum = f32((dot4I8Packed(x.x, q.x) + dot4I8Packed(x.y, q.z)) * 256 + dot4I8Packed(x.x, q.y) + dot4I8Packed(x.y, q.w));
      for (var mask = VECS / 2u; mask > 0u; mask /= 2u) { sum += swap1(sum, lane, mask); }
      if (heard && v == 0u) { qMean[r * GROUP + $hu] = sum * (step * qStep[$hu]); }
    }
    // end $h
  }
  workgroupBarrier();

  if (firstCoded < count) {
    let sub = lane % LANES;
    let pair = sub * PAIRS;
    let team = lane / LANES;
    let upper = (sub & (LANES / 2u)) != 0u;
    let odd = (sub & (LANES / 4u)) != 0u;
    let token = select(0u, 2u, upper) + select(0u, 1u, odd);
    let keeps = (sub & (LANES / 4u - 1u)) == 0u;
    // each $h
    // each $p
    let q$h_$p = qInteger[$hu * VECS + pair + $pu].xz;
    // end $p
    let step$h = qStep[$hu];
    var e$h = LOWEST;
    var sum$h = 0.0;
    // each $p
    var sum$h_$p_0 = vec4<i32>();
    var sum$h_$p_1 = vec4<i32>();
    // end $p
    // end $h
    var next = table[blocksAt + min(firstCoded + team, lastBlock)];
    var at = firstVector(next.x, pair);
    var next0 = cache[at];
    var next1 = cache[secondVector(next.x, pair, at)];
    var nextScale = words[next.z + scaleWord(next.x >> 27u, token)];
    let blocks = count - firstCoded;
    let warpFirst = warp * (32u / LANES);
    let limit = stepsOf(blocks - min(blocks, warpFirst), blocks);
    for (var first = 0u; first < limit; first += TEAMS) {
      let block = firstCoded + first + team;
      let d = next;
      let raw0 = next0;
      let raw1 = next1;
      let kWord = nextScale;
      let nibble = d.x >> 27u;
      let vNibble = d.y >> 27u;
      at = firstVector(d.y, pair);
      let value0 = cache[at];
      let value1 = cache[secondVector(d.y, pair, at)];
      let vWord = words[d.z + (d.w & 255u) + scaleWord(vNibble, token)];
      next = table[blocksAt + min(block + TEAMS, lastBlock)];

      // Keys.
      // each $h
      var x$h: vec4<i32>;
      // end $h
      var factor = 256.0;
      if (!KEYS) {
        // each $h
        x$h = bitcast<vec4<i32>>(raw0 + raw1) >> vec4(20u);
        // end $h
      } else if (nibble <= 4u) {
        // Words of the 4 tokens: channels 0, 1, 4, 5 and 2, 3, 6, 7 of a pair of chunks.
        // each $p
        var a$p: vec4<u32>;
        var b$p: vec4<u32>;
        // end $p
        var offset = 0;
        if (nibble == 4u) {
          // each $p
          {
            let t0 = levels4(raw$p.x, replica);
            let t1 = levels4(raw$p.y, replica);
            let t2 = levels4(raw$p.z, replica);
            let t3 = levels4(raw$p.w, replica);
            a$p = vec4(t0.x, t1.x, t2.x, t3.x);
            b$p = vec4(t0.y, t1.y, t2.y, t3.y);
          }
          // end $p
        } else if (nibble == 3u) {
          // each $p
          {
            let t0 = levels3(threes(raw0.x, raw1.x, pair + $pu), replica);
            let t1 = levels3(threes(raw0.y, raw1.y, pair + $pu), replica);
            let t2 = levels3(threes(raw0.z, raw1.z, pair + $pu), replica);
            let t3 = levels3(threes(raw0.w, raw1.w, pair + $pu), replica);
            a$p = vec4(t0.x, t1.x, t2.x, t3.x);
            b$p = vec4(t0.y, t1.y, t2.y, t3.y);
          }
          // end $p
        } else {
          offset = select(-40, -10, nibble == 2u);
          factor = select(256.0, 1024.0, nibble == 2u);
          // each $p
          {
            var t0: vec2<u32>;
            var t1: vec2<u32>;
            var t2: vec2<u32>;
            var t3: vec2<u32>;
            if (nibble == 2u) {
              let s = raw0 >> vec4(((pair + $pu) & 1u) * 4u);
              t0 = inPairs(two(s.x), two(s.x >> 2u));
              t1 = inPairs(two(s.y), two(s.y >> 2u));
              t2 = inPairs(two(s.z), two(s.z >> 2u));
              t3 = inPairs(two(s.w), two(s.w >> 2u));
            } else {
              let s = raw0 >> vec4(((pair + $pu) & 3u) * 2u);
              t0 = inPairs(one(s.x), one(s.x >> 1u));
              t1 = inPairs(one(s.y), one(s.y >> 1u));
              t2 = inPairs(one(s.z), one(s.z >> 1u));
              t3 = inPairs(one(s.w), one(s.w >> 1u));
            }
            a$p = vec4(t0.x, t1.x, t2.x, t3.x);
            b$p = vec4(t0.y, t1.y, t2.y, t3.y);
          }
          // end $p
        }
        // each $h
        {
          var x = vec4<i32>();
          if (offset != 0) {
            var q = 0;
            // each $p
            q += total(q$h_$p.x) + total(q$h_$p.y);
            // end $p
            x = vec4(offset * q);
          }
          // each $p
          x += dots(a$p, q$h_$p.x);
          x += dots(b$p, q$h_$p.y);
          // end $p
          x$h = x;
        }
        // end $h
      } else {
        factor = 1.0;
        // each $p
        var a$p = raw0;
        var b$p = raw1;
        if ($p == 1) {
          a$p = cache[(d.x & PLACE) + pair * 2u + 2u];
          b$p = cache[(d.x & PLACE) + pair * 2u + 3u];
        }
        {
          let t = (a$p >> vec4(16u)) | (b$p & vec4(0xffff0000u));
          a$p = (a$p & vec4(0xffffu)) | (b$p << vec4(16u));
          b$p = t;
        }
        // end $p
        // each $h
        {
          var high = vec4<i32>();
          var low = vec4<i32>();
          // each $p
          {
            let q = qInteger[$hu * VECS + pair + $pu];
            high += dots(a$p, q.x) + dots(b$p, q.z);
            low += dots(a$p, q.y) + dots(b$p, q.w);
          }
          // end $p
          x$h = high * 256 + low;
        }
        // end $h
      }
      at = firstVector(next.x, pair);
      next0 = cache[at];
      next1 = cache[secondVector(next.x, pair, at)];
      nextScale = words[next.z + scaleWord(next.x >> 27u, token)];

      // Weights.
      let record = d.w >> 23u;
      let base = bases[record];
      let kScale = factor * exp2(scaleLog(kWord, nibble, token, base.x));
      let vLog = scaleLog(vWord, vNibble, token, base.y);
      let there = block < count && token <= ((d.w >> 21u) & 3u);
      let fine = vNibble == 8u;
      // each $h
      var w$h: u32;
      var low$h = 0u;
      var fit$h: u32;
      {
        // Sums over the lanes of a block; each lane keeps one token.
        let both = select(x$h.xy, x$h.zw, upper) + bitcast<vec2<i32>>(swapU(bitcast<vec2<u32>>(select(x$h.zw, x$h.xy, upper)), lane, LANES / 2u));
        var x = select(both.x, both.y, odd) + swapI(select(both.y, both.x, odd), lane, LANES / 4u);
        for (var mask = LANES / 8u; mask > 0u; mask /= 2u) { x += swapI(x, lane, mask); }
        let s = select(NEVER, f32(x) * (kScale * step$h) + qMean[record * GROUP + $hu], there);
        if (params.scoreStride > 0u && keeps && block < count) {
          scoresOut[scoreRow + $hu * params.scoreStride + ((d.w >> 8u) & 8191u) + token] = select(NEVER, s * LN_2, there);
        }
        var top = s + max(vLog, LEAST_SCALE);
        top = max(top, swap1(top, lane, LANES / 4u));
        top = ceil(max(top, swap1(top, lane, LANES / 2u)));
        if (top > e$h) {
          sum$h *= exp2(e$h - top);
          let shift = u32(min(top - e$h, 31.0));
          // each $p
          sum$h_$p_0 = (sum$h_$p_0 + vec4(1 << (shift - 1u))) >> vec4(shift);
          sum$h_$p_1 = (sum$h_$p_1 + vec4(1 << (shift - 1u))) >> vec4(shift);
          // end $p
          e$h = top;
        }
        let above = s - e$h;
        sum$h += select(0.0, exp2(above), keeps && there);
        // Of 15 bits so many lower ones are left to the power of two.
        let fit = clamp(top - e$h + 8.0, 0.0, select(8.0, 0.0, fine));
        fit$h = u32(fit);
        let m = u32(round(127.0 * exp2(above + vLog + (8.0 - fit))));
        if (fine) {
          let high = (m + 128u) >> 8u;
          w$h = high << (token * 8u);
          low$h = ((m - high * 256u) & 255u) << (token * 8u);
        } else {
          w$h = m << (token * 8u);
        }
        w$h |= swapWord(w$h, lane, LANES / 4u);
        w$h |= swapWord(w$h, lane, LANES / 2u);
      }
      // end $h
      if (firstCoded + first < fineEnd) {
        // each $h
        low$h |= swapWord(low$h, lane, LANES / 4u);
        low$h |= swapWord(low$h, lane, LANES / 2u);
        // end $h
      }

      // Values: a word of each channel, bytes the tokens.
      if (!VALUES) {
        // each $h
        sum$h_0_0 += bitcast<vec4<i32>>(value0 + value1 + vec4(w$h)) >> vec4(20u);
        // end $h
      } else if (!fine) {
        // each $p
        var c$p_0: vec4<u32>;
        var c$p_1: vec4<u32>;
        // end $p
        // Of 2 bits, even chunks come as a quarter.
        var offset = 0;
        var lift = 0u;
        if (vNibble >= 3u) {
          // each $p
          {
            var t0: vec2<u32>;
            var t1: vec2<u32>;
            var t2: vec2<u32>;
            var t3: vec2<u32>;
            if (vNibble == 4u) {
              t0 = levels4(value$p.x, replica);
              t1 = levels4(value$p.y, replica);
              t2 = levels4(value$p.z, replica);
              t3 = levels4(value$p.w, replica);
            } else {
              t0 = levels3(threes(value0.x, value1.x, pair + $pu), replica);
              t1 = levels3(threes(value0.y, value1.y, pair + $pu), replica);
              t2 = levels3(threes(value0.z, value1.z, pair + $pu), replica);
              t3 = levels3(threes(value0.w, value1.w, pair + $pu), replica);
            }
            let r0 = inPairs(t0.x, t0.y);
            let r1 = inPairs(t1.x, t1.y);
            let r2 = inPairs(t2.x, t2.y);
            let r3 = inPairs(t3.x, t3.y);
            c$p_0 = vec4(r0.x, r1.x, r2.x, r3.x);
            c$p_1 = vec4(r0.y, r1.y, r2.y, r3.y);
          }
          // end $p
        } else if (vNibble == 2u) {
          offset = -10;
          lift = 2u;
          // each $p
          {
            let s = value0 >> vec4(((pair + $pu) & 1u) * 4u);
            c$p_0 = vec4(two(s.x), two(s.y), two(s.z), two(s.w));
            c$p_1 = vec4(twoFold(s.x), twoFold(s.y), twoFold(s.z), twoFold(s.w));
          }
          // end $p
        } else {
          offset = -40;
          // each $p
          {
            let s = value0 >> vec4(((pair + $pu) & 3u) * 2u);
            c$p_0 = vec4(one(s.x), one(s.y), one(s.z), one(s.w));
            c$p_1 = vec4(one(s.x >> 1u), one(s.y >> 1u), one(s.z >> 1u), one(s.w >> 1u));
          }
          // end $p
        }
        // each $h
        {
          let even = 1 << (fit$h + lift);
          let times = 1 << fit$h;
          var bias = 0;
          if (offset != 0) { bias = offset * total(w$h); }
          let oddBias = vec4(bias << lift);
          // each $p
          sum$h_$p_0 += even * (vec4(bias) + dots(c$p_0, w$h));
          sum$h_$p_1 += times * (oddBias + dots(c$p_1, w$h));
          // end $p
        }
        // end $h
      } else {
        // each $p
        {
          var a = value0;
          var b = value1;
          if ($p == 1) {
            a = cache[(d.y & PLACE) + pair * 2u + 2u];
            b = cache[(d.y & PLACE) + pair * 2u + 3u];
          }
          // each $h
          sum$h_$p_0 += dots(a, w$h) * 256 + dots(a, low$h);
          sum$h_$p_1 += dots(b, w$h) * 256 + dots(b, low$h);
          // end $h
        }
        // end $p
      }
    }

    // Over the teams of a warp: a lane keeps half of its chunks, then half of these. The table is no longer needed.
    let above = (own & 16u) != 0u;
    let right = (own & 8u) != 0u;
    var chunk = select(0u, 1u, above);
    if (PAIRS == 2u) { chunk = select(0u, 2u, above) + select(0u, 1u, right); }
    workgroupBarrier();
    // each $h
    {
      let most = maximumOf(e$h, lane);
      let factor = exp2(e$h - most);
      let sum = sumOf(sum$h * factor, lane);
      var out = array<vec4<f32>, 4>();
      // each $p
      out[$p * 2] = vec4<f32>(sum$h_$p_0) * (factor / UNIT);
      out[$p * 2 + 1] = vec4<f32>(sum$h_$p_1) * (factor / UNIT);
      // end $p
      var z: vec4<f32>;
      if (PAIRS == 2u) {
        let x = select(out[0], out[2], above) + swap4(select(out[2], out[0], above), lane, 16u);
        let y = select(out[1], out[3], above) + swap4(select(out[3], out[1], above), lane, 16u);
        z = select(x, y, right) + swap4(select(y, x, right), lane, 8u);
        if (LANES <= 4u) { z += swap4(z, lane, 4u); }
      } else {
        z = select(out[0], out[1], above) + swap4(select(out[1], out[0], above), lane, 16u);
        if (LANES <= 8u) { z += swap4(z, lane, 8u); }
      }
      if ((own & select(15u, 7u, PAIRS == 2u)) < LANES) {
        let to = (warp * GROUP + $hu) * HEAD_DIM + (pair * 2u + chunk) * 4u;
        for (var c = 0u; c < 4u; c++) { shared_[to + c] = bitcast<u32>(z[c]); }
      }
      if (own == 0u) { perWarp[warp * GROUP + $hu] = vec2(most, sum); }
    }
    // end $h
    workgroupBarrier();
  }

  if (firstCoded > 0u) {
    let sub = lane % VECS;
    let team = lane / VECS;
    let upper = (sub & (VECS / 2u)) != 0u;
    let odd = (sub & (VECS / 4u)) != 0u;
    let token = select(0u, 2u, upper) + select(0u, 1u, odd);
    let keeps = (sub & (VECS / 4u - 1u)) == 0u;
    // each $h
    let qa$h = qFloat[($hu * VECS + sub) * 2u];
    let qb$h = qFloat[($hu * VECS + sub) * 2u + 1u];
    var e$h = LOWEST;
    var sum$h = 0.0;
    var outA$h = vec4<f32>();
    var outB$h = vec4<f32>();
    // end $h
    let exactK = exactAt(item, kvHead, split.first);
    let warpFirst = warp * (32u / VECS);
    let limit = stepsOf(firstCoded - min(firstCoded, warpFirst), firstCoded);
    for (var first = 0u; first < limit; first += FLOAT_TEAMS) {
      let block = min(first + team, firstCoded - 1u);
      var d: vec4<u32>;
      if (exact) {
        let k = exactK + block * blockVectors(item.exactBits);
        let nibble = nibbleOf(item.exactBits) << 27u;
        d = vec4(k | nibble, (k + exactHalf(item)) | nibble, 0u, (block << 10u) | (min(3u, seen - block * 4u - 1u) << 21u));
      } else {
        d = table[blocksAt + block];
      }
      let half = (d.x >> 27u) == 9u;
      let kAt = d.x & PLACE;
      let vAt = d.y & PLACE;
      let less1 = (d.w >> 21u) & 3u;
      // each $t
      var k$t: Floats;
      var v$t: vec4<u32>;
      // end $t
      if (half) {
        // each $t
        let raw$t = cache[kAt + $tu * VECS + sub];
        v$t = cache[vAt + $tu * VECS + sub];
        // end $t
        // each $t
        k$t = floats16(raw$t);
        // end $t
      } else {
        // each $t
        k$t = floats32(kAt + ($tu * VECS + sub) * 2u);
        // end $t
      }
      let cell = ((d.w >> 8u) & 8191u) + token;
      let there = first + team < firstCoded && token <= less1 && cell >= hidden;
      // each $h
      var w$h: vec4<f32>;
      {
        let x = vec4(
          dot(qa$h, k0.low) + dot(qb$h, k0.high),
          dot(qa$h, k1.low) + dot(qb$h, k1.high),
          dot(qa$h, k2.low) + dot(qb$h, k2.high),
          dot(qa$h, k3.low) + dot(qb$h, k3.high));
        // Sums over the lanes of a block; each lane keeps one token.
        let pair = select(x.xy, x.zw, upper) + swap2(select(x.zw, x.xy, upper), lane, VECS / 2u);
        var y = select(pair.x, pair.y, odd) + swap1(select(pair.y, pair.x, odd), lane, VECS / 4u);
        for (var mask = VECS / 8u; mask > 0u; mask /= 2u) { y += swap1(y, lane, mask); }
        let s = select(NEVER, y, there);
        if (params.scoreStride > 0u && keeps && first + team < firstCoded && cell >= hidden && cell < mostCells) {
          scoresOut[scoreRow + $hu * params.scoreStride + cell] = select(NEVER, s * LN_2, there);
        }
        var top = max(s, swap1(s, lane, VECS / 4u));
        top = ceil(max(top, swap1(top, lane, VECS / 2u)));
        if (top > e$h) {
          let shrink = exp2(e$h - top);
          sum$h *= shrink;
          outA$h *= shrink;
          outB$h *= shrink;
          e$h = top;
        }
        let p = select(0.0, exp2(s - e$h), there);
        sum$h += select(0.0, p, keeps);
        let beside = swap1(p, lane, VECS / 4u);
        let here = select(vec2(p, beside), vec2(beside, p), odd);
        let other = swap2(here, lane, VECS / 2u);
        w$h = select(vec4(here, other), vec4(other, here), upper);
      }
      // end $h
      // each $t
      var t$t: Floats;
      if (half) { t$t = floats16(v$t); } else { t$t = floats32(vAt + ($tu * VECS + sub) * 2u); }
      // end $t
      // What lies past the written slots may be no number.
      if (less1 < 3u) {
        t3 = Floats();
        if (less1 < 2u) { t2 = Floats(); }
        if (less1 < 1u) { t1 = Floats(); }
      }
      // each $h
      outA$h += w$h.x * t0.low + w$h.y * t1.low + w$h.z * t2.low + w$h.w * t3.low;
      outB$h += w$h.x * t0.high + w$h.y * t1.high + w$h.z * t2.high + w$h.w * t3.high;
      // end $h
    }
    // Over the teams of a warp, then with what the codes left.
    // each $h
    {
      var before = vec2(LOWEST, 0.0);
      if (firstCoded < count) { before = perWarp[warp * GROUP + $hu]; }
      let most = max(maximumOf(e$h, lane), before.x);
      let factor = exp2(e$h - most);
      let shrink = exp2(before.x - most);
      let sum = sumOf(sum$h * factor, lane) + before.y * shrink;
      var a = outA$h * factor;
      var b = outB$h * factor;
      for (var mask = 16u; mask >= VECS; mask /= 2u) {
        a += swap4(a, lane, mask);
        b += swap4(b, lane, mask);
      }
      if (own < VECS) {
        let to = (warp * GROUP + $hu) * HEAD_DIM + sub * 8u;
        for (var c = 0u; c < 4u; c++) {
          if (firstCoded < count) {
            a[c] += bitcast<f32>(shared_[to + c]) * shrink;
            b[c] += bitcast<f32>(shared_[to + 4u + c]) * shrink;
          }
          shared_[to + c] = bitcast<u32>(a[c]);
          shared_[to + 4u + c] = bitcast<u32>(b[c]);
        }
      }
      workgroupBarrier();
      if (own == 0u) { perWarp[warp * GROUP + $hu] = vec2(most, sum); }
    }
    // end $h
    workgroupBarrier();
  }

  // Over the warps, to memory.
  for (var i = lane; i < GROUP * HEAD_DIM; i += WIDTH) {
    let h = i / HEAD_DIM;
    var most = LOWEST;
    for (var w = 0u; w < WARPS; w++) { most = max(most, perWarp[w * GROUP + h].x); }
    var x = 0.0;
    var sum = 0.0;
    if (count > 0u) {
      for (var w = 0u; w < WARPS; w++) {
        let part = perWarp[w * GROUP + h];
        let factor = exp2(part.x - most);
        x += bitcast<f32>(shared_[w * GROUP * HEAD_DIM + i]) * factor;
        sum += part.y * factor;
      }
    }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + h) * (HEAD_DIM + 2u);
    partials[to + 2u + i % HEAD_DIM] = x;
    if (i % HEAD_DIM == 0u) {
      partials[to] = select(most * LN_2, NEVER, count == 0u);
      partials[to + 1u] = sum;
    }
  }
}
