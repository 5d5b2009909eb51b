#version 330
// What every fragment shader of the world has: noise, the key light's soft shadow, and the light itself.
uniform vec3 key_direction;   // towards the light
uniform vec3 key_colour;
uniform vec3 sky_colour;      // from above
uniform vec3 ground_colour;   // from below
uniform vec3 rim_colour;
uniform mat4 light_view;
uniform sampler2D shadow_map;
uniform float seed;

float hash(vec2 p) { return fract(sin(dot(p, vec2(127.1, 311.7)) + seed) * 43758.5453); }

float noise(vec2 p) {
    vec2 i = floor(p), f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(hash(i), hash(i + vec2(1, 0)), f.x), mix(hash(i + vec2(0, 1)), hash(i + vec2(1, 1)), f.x), f.y);
}

// 1 in the light, 0 in the shadow: four taps, turned by the pixel, are soft enough at this size.
float lit(vec3 position, float bias) {
    vec3 p = (light_view * vec4(position, 1.0)).xyz * 0.5 + 0.5;
    float angle = hash(gl_FragCoord.xy) * 6.2832, sum = 0.0;
    for (int i = 0; i < 4; i++) {
        float a = angle + float(i) * 1.5708;
        float r = 0.004 + 0.010 * float(i) / 3.0;
        sum += step(p.z - bias, texture(shadow_map, p.xy + r * vec2(cos(a), sin(a))).r);
    }
    return sum * 0.25;
}

vec3 ambient(vec3 n) { return mix(ground_colour, sky_colour, n.y * 0.5 + 0.5); }

vec3 rim(vec3 n) { return rim_colour * pow(1.0 - max(n.z, 0.0), 3.0); }

vec3 linear(vec3 srgb) { return pow(srgb, vec3(2.2)); }

// Linear light to sRGB, with a shoulder so that nothing burns out.
vec4 developed(vec3 light) {
    light = light * (1.0 + light * 0.12) / (1.0 + light * 0.32);
    return vec4(pow(max(light * 1.18, 0.0), vec3(1.0 / 2.2)), 1.0);
}
