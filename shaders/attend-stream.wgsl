// As attend.wgsl, for heads of 64 or 128 channels: attention of one query row and kvHead over one split, whose blocks of 4 tokens run past in two loops
// without a barrier. Where they lie stands in a table (attend-describe.wgsl). One workgroup of WARPS * 32 lanes.
//
// Codes are multiplied as the integers that they stand for (dot4I8Packed, exact): queries have 8 bits a channel (15 for keys of 8 bits), relative to their
// largest; the weights of a block 7 bits, times a power of two. So it is in the WebAssembly kernels, too. Logarithms are binary: the queries are scaled by
// log2(e), and references are whole numbers.
// (1) Blocks whose values have 1 to 4 bits: LANES lanes take a block's keys and leave its weights, relative to a power of two above the largest product of a
//     probability and a value's scale; then VALUE_LANES lanes take its values, in integers of one unit for all.
// (2) Blocks of floats and of 8 bits: a softmax of its own for each few lanes, keys and values at once.
// `// each $x` ... `// end $x` stands for its lines once for each x (webgpu-prelude.ts, unroll): heads h < GROUP, pairs of chunks of a
// lane p < PAIRS and v < VALUE_PAIRS, tokens t < 4.
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(6) var<storage, read> table: array<vec4<u32>>;    // as attend-describe.wgsl writes it

const WIDTH = WARPS * 32u;
/// Lanes of a block of codes, PAIRS pairs of chunks each; of a block of floats, 8 channels each.
const LANES = HEAD_DIM / (8u * PAIRS);
const VALUE_LANES = HEAD_DIM / (8u * VALUE_PAIRS);
const VALUE_TEAMS = WIDTH / VALUE_LANES;
const MAX_BLOCKS = SEGMENTS * MAX_CELLS / 4u;
/// Words of the exponents of a block's heads, 16 bits each.
const EXPONENTS = (GROUP + 1u) / 2u;
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
const LOWEST = -32000.0;
const LEAST_SCALE = -40.0;

// Little workgroup memory lets many workgroups stay on a multiprocessor.
/// [pair of codes][replica]: levels of both as bytes 0 and 2; 4 bits from entry 0, 3 bits from entry 256 on.
var<workgroup> lut: array<u32, 320u * REPLICAS>;
/// [block][head]: weights of 4 tokens as bytes. Then values as [warp][head][channel], relative to the warp's reference.
var<workgroup> shared_: array<u32, max(MAX_BLOCKS * GROUP, WARPS * GROUP * HEAD_DIM)>;
/// [block]: exponents that the weights of 2 heads are relative to, signed.
var<workgroup> exponents: array<u32, MAX_BLOCKS * EXPONENTS>;
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
    for (var r = 0u; r < REPLICAS; r++) { lut[(entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
  }
  // Two bits of both codes, then the third of both.
  for (var entry = lane; entry < 64u; entry += WIDTH) {
    let first = (entry & 3u) | ((entry >> 2u) & 4u);
    let second = ((entry >> 2u) & 3u) | ((entry >> 3u) & 4u);
    let pair = byteOf(LEVELS_3, first) | (byteOf(LEVELS_3, second) << 16u);
    for (var r = 0u; r < REPLICAS; r++) { lut[LUT_3 + (entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
  }
}
/// Levels of a word's 4 pairs: bytes (0 low, 1 low, 0 high, 1 high), then 2 and 3; "low" is the code in the lower bits. No index leaves the table, as a
/// compiler can see.
fn levels4(pairs: u32, replica: u32) -> vec2<u32> {
  if (!LOOKUPS) { return vec2(pairs & 0x3f3f3f3fu, (pairs >> 1u) & 0x3f3f3f3fu); }
  let a = lut[((pairs << LOG_REPLICAS) & MASK_4) | replica];
  let b = lut[((pairs >> (8u - LOG_REPLICAS)) & MASK_4) | replica];
  let c = lut[((pairs >> (16u - LOG_REPLICAS)) & MASK_4) | replica];
  let d = lut[((pairs >> (24u - LOG_REPLICAS)) & MASK_4) | replica];
  return vec2(b * 256u + a, d * 256u + c);
}
fn levels3(pairs: u32, replica: u32) -> vec2<u32> {
  if (!LOOKUPS) { return vec2(pairs & 0x3f3f3f3fu, (pairs >> 1u) & 0x3f3f3f3fu); }
  let a = lut[(((pairs << LOG_REPLICAS) & MASK_3) | replica) + LUT_3];
  let b = lut[(((pairs >> (8u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
  let c = lut[(((pairs >> (16u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
  let d = lut[(((pairs >> (24u - LOG_REPLICAS)) & MASK_3) | replica) + LUT_3];
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
fn secondVector(half: u32, g: u32, first: u32, pairs: u32) -> u32 {
  let nibble = half >> 27u;
  // Vectors of the third bit of 3-bit codes come behind those of the lower two.
  let third = (half & PLACE) + HEAD_DIM / 16u + g / 4u;
  return select(select(first + select(0u, 1u, pairs == 2u || nibble == 8u), third, nibble == 3u), first, nibble < 3u);
}
/// Pairs of codes of 3 bits.
fn threes(low: u32, high: u32, g: u32) -> u32 {
  return ((low >> ((g & 1u) * 4u)) & 0x0f0f0f0fu) | (((high >> ((g & 3u) * 2u)) & 0x03030303u) << 4u);
}
/// Logarithm of a level's unit, for scales of 1 to 4 bits, and of the least scale code.
fn unitLog(nibble: u32) -> f32 {
  return select(select(select(log2(UNIT_INVERSE_1), log2(UNIT_INVERSE_2), nibble == 2u), log2(UNIT_INVERSE_3), nibble == 3u), log2(UNIT_INVERSE_4), nibble == 4u) - 255.0 / 32.0;
}
/// A token's code of the scale, and the scale's logarithm; a token of a zero vector has none.
fn codeOf(word: u32, token: u32) -> u32 { return (word >> (token * 8u)) & 255u; }
fn scaleLog(code: u32, nibble: u32, base: f32) -> f32 { return f32(code) * 0.03125 + (base + unitLog(nibble)); }
fn halfOf(word: u32, token: u32) -> f32 {
  let pair = unpack2x16float(word);
  return select(pair.x, pair.y, (token & 1u) != 0u);
}
struct Floats { low: vec4<f32>, high: vec4<f32> }
fn floats16(v: vec4<u32>) -> Floats { return Floats(halves(v.x, v.y), halves(v.z, v.w)); }
fn floats32(at: u32) -> Floats { return Floats(bitcast<vec4<f32>>(cache[at]), bitcast<vec4<f32>>(cache[at + 1u])); }

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // What is far away is sent for at once, in the order in which it will be there.
  let kvHead = id.y;
  let row = id.z;
  let tableAt = (id.x * KV_HEADS + kvHead) * TABLE;
  let split = splits[id.x];
  let head = table[tableAt];
  let ofRecord = lane / VECS;
  let record = table[tableAt + 1u + min(ofRecord, SEGMENTS - 1u)];
  let item = items[split.item];
  let warp = lane / 32u;
  let own = lane & 31u;
  let replica = lane & (REPLICAS - 1u);
  let exact = split.count == 0u;
  // A piece of the exact part reads as one group of floats.
  let seen = min(split.to, max(item.visible + row, split.first) - split.first);
  let hidden = select(0u, split.from_, exact);
  let mostCells = select(SEGMENTS * MAX_CELLS, split.to, exact);
  let count = select(select(0u, head.x, BLOCKS), (seen + 3u) / 4u, exact);
  let firstCoded = select(min(head.y, count), count, exact);
  // A lane without a block repeats the last one, unheard.
  let lastBlock = max(count, 1u) - 1u;
  let blocksAt = tableAt + 1u + SEGMENTS;
  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;

  let sub = lane % LANES;
  let pair = sub * PAIRS;
  let team = lane / LANES;
  let upper = (sub & (LANES / 2u)) != 0u;
  let odd = (sub & (LANES / 4u)) != 0u;
  let token = select(0u, 2u, upper) + select(0u, 1u, odd);
  let keeps = (sub & (LANES / 4u - 1u)) == 0u;
  let valuePair = (lane % VALUE_LANES) * VALUE_PAIRS;
  let valueTeam = lane / VALUE_LANES;
  var next = vec4<u32>();
  var after = vec4<u32>();
  var next0 = vec4<u32>();
  var next1 = vec4<u32>();
  var nextK = 0u;
  var nextV = 0u;
  var place = 0u;
  var placeAfter = 0u;
  var mean = vec2<u32>();
  if (ofRecord < split.count) {
    let at = record.x + (lane % VECS) * 2u;
    mean = vec2(words[at], words[at + 1u]);
  }
  if (firstCoded < count) {
    next = table[blocksAt + min(firstCoded + team, lastBlock)];
    after = table[blocksAt + min(firstCoded + team + TEAMS, lastBlock)];
    place = table[blocksAt + min(firstCoded + valueTeam, lastBlock)].y;
    placeAfter = table[blocksAt + min(firstCoded + valueTeam + VALUE_TEAMS, lastBlock)].y;
    let at = firstVector(next.x, pair);
    next0 = cache[at];
    next1 = cache[secondVector(next.x, pair, at, PAIRS)];
    nextK = words[next.z + select(0u, token / 2u, (next.x >> 27u) == 8u)];
    nextV = words[next.z + (next.w & 255u)];
  }

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

  // The queries times the means, a lane 8 channels.
  {
    let v = lane % VECS;
    let heard = ofRecord < split.count;
    let x = inPairs(mean.x, mean.y);
    let step = unpack2x16float(record.z).x;
    if (heard && v == 0u) { bases[ofRecord] = log2(max(unpack2x16float(record.y), vec2(1e-30))); }
    // each $h
    {
      let q = qInteger[$hu * VECS + v];
      var sum = f32((dot4I8Packed(x.x, q.x) + dot4I8Packed(x.y, q.z)) * 256 + dot4I8Packed(x.x, q.y) + dot4I8Packed(x.y, q.w));
      for (var mask = VECS / 2u; mask > 0u; mask /= 2u) { sum += swap1(sum, lane, mask); }
      if (heard && v == 0u) { qMean[ofRecord * GROUP + $hu] = sum * (step * qStep[$hu]); }
    }
    // end $h
  }
  workgroupBarrier();

  if (firstCoded < count) {
    let blocks = count - firstCoded;
    // each $h
    var e$h = LOWEST;
    var total$h = 0.0;
    // end $h
    {
      // each $h
      // each $p
      let q$h_$p = qInteger[$hu * VECS + pair + $pu].xz;
      // end $p
      let step$h = qStep[$hu];
      // end $h
      let warpFirst = warp * (32u / LANES);
      let limit = stepsOf(blocks - min(blocks, warpFirst), blocks);
      for (var first = 0u; first < limit; first += TEAMS) {
        let block = firstCoded + first + team;
        let d = next;
        let raw0 = next0;
        let raw1 = next1;
        let kWord = nextK;
        let vWord = nextV;
        let nibble = d.x >> 27u;
        next = after;
        after = table[blocksAt + min(block + 2u * TEAMS, lastBlock)];
        let at = firstVector(next.x, pair);
        next0 = cache[at];
        next1 = cache[secondVector(next.x, pair, at, PAIRS)];
        nextK = words[next.z + select(0u, token / 2u, (next.x >> 27u) == 8u)];
        nextV = words[next.z + (next.w & 255u)];

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

        // Sums over the lanes of a block; each lane keeps one token. Then the block's weights, relative to a power of two above the largest of them.
        let record = d.w >> 23u;
        let base = bases[record];
        let code = codeOf(kWord, token);
        let kCoded = select(exp2(scaleLog(code, nibble, base.x)), 0.0, code == 0u);
        let kScale = factor * select(kCoded, halfOf(kWord, token), nibble == 8u);
        let vCode = codeOf(vWord, token);
        let vLog = select(scaleLog(vCode, d.y >> 27u, base.y), -200.0, vCode == 0u);
        let there = block < count && token <= ((d.w >> 21u) & 3u);
        // each $h
        let both$h = select(x$h.xy, x$h.zw, upper) + bitcast<vec2<i32>>(swapU(bitcast<vec2<u32>>(select(x$h.zw, x$h.xy, upper)), lane, LANES / 2u));
        // end $h
        // each $h
        var one$h = select(both$h.x, both$h.y, odd) + swapI(select(both$h.y, both$h.x, odd), lane, LANES / 4u);
        for (var mask = LANES / 8u; mask > 0u; mask /= 2u) { one$h += swapI(one$h, lane, mask); }
        let s$h = select(NEVER, f32(one$h) * (kScale * step$h) + qMean[record * GROUP + $hu], there);
        var top$h = s$h + max(vLog, LEAST_SCALE);
        // end $h
        // each $h
        top$h = max(top$h, swap1(top$h, lane, LANES / 4u));
        // end $h
        // each $h
        top$h = max(max(top$h, swap1(top$h, lane, LANES / 2u)), LOWEST);
        // end $h
        // each $h
        top$h = ceil(top$h);
        let m$h = u32(127.0 * exp2(s$h - top$h + vLog) + 0.5);
        var w$h = select(0u, m$h << (token * 8u), there);
        // end $h
        // each $h
        w$h |= swapWord(w$h, lane, LANES / 4u);
        // end $h
        // each $h
        w$h |= swapWord(w$h, lane, LANES / 2u);
        // end $h
        // each $h
        {
          let most = max(e$h, top$h);
          total$h = total$h * exp2(e$h - most) + select(0.0, exp2(s$h - most), keeps && there);
          e$h = most;
        }
        // end $h
        if (sub == 0u && block < count) {
          let i = first + team;
          var powers = array<u32, 2u * EXPONENTS>();
          // each $h
          shared_[i * GROUP + $hu] = w$h;
          powers[$h] = bitcast<u32>(i32(top$h)) & 0xffffu;
          // end $h
          for (var j = 0u; j < EXPONENTS; j++) { exponents[i * EXPONENTS + j] = powers[2u * j] | (powers[2u * j + 1u] << 16u); }
        }
        if (params.scoreStride > 0u && keeps && block < count) {
          let to = scoreRow + ((d.w >> 8u) & 8191u) + token;
          // each $h
          scoresOut[to + $hu * params.scoreStride] = select(NEVER, s$h * LN_2, there);
          // end $h
        }
      }
    }
    var at = firstVector(place, valuePair);
    next0 = cache[at];
    next1 = cache[secondVector(place, valuePair, at, VALUE_PAIRS)];
    // each $h
    {
      let most = maximumOf(e$h, lane);
      let sum = sumOf(total$h * exp2(e$h - most), lane);
      if (own == 0u) { perWarp[warp * GROUP + $hu] = vec2(most, sum); }
    }
    // end $h
    workgroupBarrier();
    // each $h
    var most$h = LOWEST;
    for (var w = 0u; w < WARPS; w++) { most$h = max(most$h, perWarp[w * GROUP + $hu].x); }
    // each $v
    var sum$h_$v_0 = vec4<i32>();
    var sum$h_$v_1 = vec4<i32>();
    // end $v
    // end $h
    for (var i = valueTeam; i < blocks; i += VALUE_TEAMS) {
      let vNibble = place >> 27u;
      let value0 = next0;
      let value1 = next1;
      place = placeAfter;
      placeAfter = table[blocksAt + min(firstCoded + i + 2u * VALUE_TEAMS, lastBlock)].y;
      at = firstVector(place, valuePair);
      next0 = cache[at];
      next1 = cache[secondVector(place, valuePair, at, VALUE_PAIRS)];
      // each $h
      var w$h = shared_[i * GROUP + $hu];
      var fit$h: u32;
      {
        let word = exponents[i * EXPONENTS + $hu / 2u];
        let power = f32(bitcast<i32>(word << (16u - ($hu & 1u) * 16u)) >> 16u);
        let below = u32(most$h - power);
        fit$h = 8u - min(below, 8u);
        // Weights below 2^-8 lose bits.
        if (below > 8u) {
          let k = min(below - 8u, 8u);
          w$h = ((w$h + 0x01010101u * ((1u << k) >> 1u)) >> k) & (0x01010101u * (127u >> min(k, 7u)));
          if (k == 8u) { w$h = 0u; }
        }
      }
      // end $h
      if (!VALUES) {
        // each $h
        sum$h_0_0 += bitcast<vec4<i32>>(value0 + value1 + vec4(w$h)) >> vec4(20u);
        // end $h
      } else {
        // each $v
        var c$v_0: vec4<u32>;
        var c$v_1: vec4<u32>;
        // end $v
        // Of 2 bits, even chunks come as a quarter.
        var offset = 0;
        var lift = 0u;
        if (vNibble >= 3u) {
          // each $v
          {
            var t0: vec2<u32>;
            var t1: vec2<u32>;
            var t2: vec2<u32>;
            var t3: vec2<u32>;
            if (vNibble == 4u) {
              t0 = levels4(value$v.x, replica);
              t1 = levels4(value$v.y, replica);
              t2 = levels4(value$v.z, replica);
              t3 = levels4(value$v.w, replica);
            } else {
              t0 = levels3(threes(value0.x, value1.x, valuePair + $vu), replica);
              t1 = levels3(threes(value0.y, value1.y, valuePair + $vu), replica);
              t2 = levels3(threes(value0.z, value1.z, valuePair + $vu), replica);
              t3 = levels3(threes(value0.w, value1.w, valuePair + $vu), replica);
            }
            let r0 = inPairs(t0.x, t0.y);
            let r1 = inPairs(t1.x, t1.y);
            let r2 = inPairs(t2.x, t2.y);
            let r3 = inPairs(t3.x, t3.y);
            c$v_0 = vec4(r0.x, r1.x, r2.x, r3.x);
            c$v_1 = vec4(r0.y, r1.y, r2.y, r3.y);
          }
          // end $v
        } else if (vNibble == 2u) {
          offset = -10;
          lift = 2u;
          // each $v
          {
            let s = value0 >> vec4(((valuePair + $vu) & 1u) * 4u);
            c$v_0 = vec4(two(s.x), two(s.y), two(s.z), two(s.w));
            c$v_1 = vec4(twoFold(s.x), twoFold(s.y), twoFold(s.z), twoFold(s.w));
          }
          // end $v
        } else {
          offset = -40;
          // each $v
          {
            let s = value0 >> vec4(((valuePair + $vu) & 3u) * 2u);
            c$v_0 = vec4(one(s.x), one(s.y), one(s.z), one(s.w));
            c$v_1 = vec4(one(s.x >> 1u), one(s.y >> 1u), one(s.z >> 1u), one(s.w >> 1u));
          }
          // end $v
        }
        // each $h
        {
          let even = 1 << (fit$h + lift);
          let times = 1 << fit$h;
          var bias = 0;
          if (offset != 0) { bias = offset * total(w$h); }
          let oddBias = vec4(bias << lift);
          // each $v
          sum$h_$v_0 += even * (vec4(bias) + dots(c$v_0, w$h));
          sum$h_$v_1 += times * (oddBias + dots(c$v_1, w$h));
          // end $v
        }
        // end $h
      }
    }

    // Over the teams of a warp: a lane keeps half of its chunks, then half of these. The weights are no longer needed.
    let above = (own & 16u) != 0u;
    let right = (own & 8u) != 0u;
    var chunk = select(0u, 1u, above);
    if (VALUE_PAIRS == 2u) { chunk = select(0u, 2u, above) + select(0u, 1u, right); }
    workgroupBarrier();
    // each $h
    {
      var out = array<vec4<f32>, 4>();
      // each $v
      out[$v * 2] = vec4<f32>(sum$h_$v_0) * (1.0 / UNIT);
      out[$v * 2 + 1] = vec4<f32>(sum$h_$v_1) * (1.0 / UNIT);
      // end $v
      var z: vec4<f32>;
      if (VALUE_PAIRS == 2u) {
        let x = select(out[0], out[2], above) + swap4(select(out[2], out[0], above), lane, 16u);
        let y = select(out[1], out[3], above) + swap4(select(out[3], out[1], above), lane, 16u);
        z = select(x, y, right) + swap4(select(y, x, right), lane, 8u);
        if (VALUE_LANES <= 4u) { z += swap4(z, lane, 4u); }
      } else {
        z = select(out[0], out[1], above) + swap4(select(out[1], out[0], above), lane, 16u);
        if (VALUE_LANES <= 8u) { z += swap4(z, lane, 8u); }
      }
      if ((own & select(15u, 7u, VALUE_PAIRS == 2u)) < VALUE_LANES) {
        let to = (warp * GROUP + $hu) * HEAD_DIM + (valuePair * 2u + chunk) * 4u;
        for (var c = 0u; c < 4u; c++) { shared_[to + c] = bitcast<u32>(z[c]); }
      }
      // The warp's sum is relative to its own reference, its values are relative to that of all.
      if (own == 0u) {
        let part = perWarp[warp * GROUP + $hu];
        perWarp[warp * GROUP + $hu] = vec2(most$h, part.y * exp2(part.x - most$h));
      }
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
      let nibble = d.x >> 27u;
      let kAt = d.x & PLACE;
      let vAt = d.y & PLACE;
      let less1 = (d.w >> 21u) & 3u;
      // each $t
      var k$t: Floats;
      var v$t: vec4<u32>;
      // end $t
      var kScale = 1.0;
      var vScale = 1.0;
      var mean = 0u;
      if (nibble == 9u) {
        // each $t
        let raw$t = cache[kAt + $tu * VECS + sub];
        v$t = cache[vAt + $tu * VECS + sub];
        // end $t
        // each $t
        k$t = floats16(raw$t);
        // end $t
      } else if (nibble == 8u) {
        let a = cache[kAt + sub * 2u];
        let b = cache[kAt + sub * 2u + 1u];
        v0 = cache[vAt + sub * 2u];
        v1 = cache[vAt + sub * 2u + 1u];
        kScale = halfOf(words[d.z + token / 2u], token);
        vScale = halfOf(words[d.z + (d.w & 255u) + token / 2u], token);
        mean = d.w >> 23u;
        // each $t
        k$t = Floats(bytes(a[$t]), bytes(b[$t]));
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
        if (nibble == 8u) { y = y * kScale + qMean[mean * GROUP + $hu]; }
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
        let weight = p * vScale;
        let beside = swap1(weight, lane, VECS / 4u);
        let here = select(vec2(weight, beside), vec2(beside, weight), odd);
        let other = swap2(here, lane, VECS / 2u);
        w$h = select(vec4(here, other), vec4(other, here), upper);
      }
      // end $h
      if (nibble == 8u) {
        // each $h
        outA$h += vec4(dot(w$h, bytes(v0.x)), dot(w$h, bytes(v0.y)), dot(w$h, bytes(v0.z)), dot(w$h, bytes(v0.w)));
        outB$h += vec4(dot(w$h, bytes(v1.x)), dot(w$h, bytes(v1.y)), dot(w$h, bytes(v1.z)), dot(w$h, bytes(v1.w)));
        // end $h
      } else {
        // each $t
        // What lies past the written slots may be no number.
        if ($tu <= less1) {
          var x: Floats;
          if (nibble == 9u) { x = floats16(v$t); } else { x = floats32(vAt + ($tu * VECS + sub) * 2u); }
          // each $h
          outA$h += w$h[$t] * x.low;
          outB$h += w$h[$t] * x.high;
          // end $h
        }
        // end $t
      }
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
