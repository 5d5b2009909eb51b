// Clothes and crowns of hats: a colour, a second one in a pattern, folds, and what a garment is known by.
uniform vec3 colour, second;
uniform int pattern;  // 0 plain, 1 striped, 2 checked, 3 dotted
uniform int garment;  // 0 T-shirt, 1 sweater, 2 shirt, 3 suit, 4 dress, 5 a knitted cap, 6 smooth
uniform float neckline;
in vec3 P;
in vec3 N;
in vec3 U;
in vec3 E;
out vec4 pixel;

vec3 patterned(vec3 c, vec2 at) {
    if (pattern == 1) return mix(c, linear(second), smoothstep(0.44, 0.5, abs(fract(at.y * 1.7) - 0.5) * 2.0 - 0.1));
    if (pattern == 2) {
        vec2 bars = smoothstep(0.36, 0.44, abs(fract(at * 1.35) - 0.5));
        return mix(c, linear(second), 0.5 * (bars.x + bars.y));
    }
    if (pattern == 3) return mix(c, linear(second), 1.0 - smoothstep(0.20, 0.26, length(fract(at * 1.6) - 0.5)));
    return c;
}

void main() {
    vec3 n = normalize(gl_FrontFacing ? N : -N), c = linear(colour);
    float ax = abs(U.x), gloss = 0.02;
    // Where a neckline runs: a round one seen from above, or a V between lapels.
    float depth = -U.y - (garment == 1 ? 2.02 : 2.30);
    float ring = depth - 0.10 * ax * ax - max(U.z + 1.2, 0.0) * neckline;
    if (garment < 5 && ring < 0.0) discard;
    vec2 at = vec2(U.x, U.y + 0.25 * U.z);
    if (garment < 5) c = patterned(c, at);
    float fold = noise(vec2(U.x * 1.3 + U.y * 0.8, U.y * 0.9 - U.x * 0.5) * 1.5) + 0.5 * noise(U.xy * vec2(2.6, 1.5));
    n = normalize(n + vec3(fold - 0.75, 0.0, 0.0) * 0.55);
    float edge = 1.0 - smoothstep(0.10, 0.14, ring), dark = 1.0;
    if (garment == 0) dark = 1.0 - 0.25 * edge;
    if (garment == 1) {  // ribs at the collar, knit below
        float rib = 0.5 + 0.5 * sin(atan(U.x, U.z + 1.3) * 50.0);
        dark = mix(0.9 + 0.1 * sin(U.y * 60.0), 0.72 + 0.3 * rib, 1.0 - smoothstep(0.30, 0.34, ring));
    }
    if (garment == 2) {  // a collar's two wings and a row of buttons
        float wing = step(ring, 0.42 - 0.35 * max(0.35 - ax, 0.0)) * step(0.06 + 0.5 * max(-U.y - 2.75, 0.0), ax);
        c = mix(c, linear(colour) * 1.12, wing);
        dark = 1.0 - 0.45 * smoothstep(0.03, 0.0, abs(ring - 0.42) ) * step(0.1, ax) * step(-0.7, U.z);
        dark *= 1.0 - 0.3 * smoothstep(0.03, 0.0, abs(ax - 0.10)) * step(U.y, -2.8) * step(-1.2, U.z);
        vec2 button = vec2(U.x, fract(U.y * 1.7) - 0.5);
        if (U.z > -1.2 && length(button * vec2(1.0, 0.6)) < 0.045) c = vec3(0.75);
    }
    if (garment == 3 && U.z > -1.6) {  // shirt and tie in the V, lapels beside it
        float v = 0.62 - 0.34 * max(-U.y - 2.5, 0.0);
        float tie = 0.13 + 0.05 * max(-U.y - 2.6, 0.0);
        if (ax < v) { c = vec3(0.78, 0.79, 0.8); dark = 1.0 - 0.4 * smoothstep(v - 0.12, v, ax); }
        if (ax < tie && U.y < -2.42) { c = linear(second); gloss = 0.06; dark = 1.0 - 0.3 * smoothstep(0.5, 1.0, ax / tie); }
        if (ax > v && ax < v + 0.34) dark = 1.22 - 0.4 * smoothstep(v + 0.28, v + 0.34, ax);
    }
    if (garment == 5) dark = 0.72 + 0.3 * (0.5 + 0.5 * sin(atan(U.x, U.z + 1.2) * 44.0)) - 0.25 * smoothstep(0.04, 0.0, abs(E.x - 0.42));
    if (garment == 6) dark = 0.92 + 0.1 * noise(U.xz * 9.0) - 0.35 * step(E.x, 0.22);
    float shadow = lit(P, 0.014), d = clamp((dot(n, key_direction) + 0.15) / 1.15, 0.0, 1.0);
    vec3 h = normalize(key_direction + vec3(0, 0, 1));
    vec3 light = c * dark * (ambient(n) + key_colour * d * shadow) + c * rim(n) * 0.7;
    light += key_colour * shadow * gloss * pow(max(dot(n, h), 0.0), 10.0);
    pixel = developed(light);
}
