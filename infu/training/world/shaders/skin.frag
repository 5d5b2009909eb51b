// The head's skin, with everything that is painted on it. U: place on the mean head; E: how much of a lip, how far above the hairline, how far inside a beard.
uniform vec3 skin_colour, hair_colour, lip_colour;
uniform float brows, lips, freckles, flush, age, stubble, scalp, hairline, makeup;
in vec3 P;
in vec3 N;
in vec3 U;
in vec3 E;
out vec4 pixel;

float spot(vec2 at, vec2 size) { vec2 d = at / size; return exp(-dot(d, d)); }

void main() {
    float ax = abs(U.x), face = smoothstep(-0.9, -0.3, U.z);
    vec3 n = normalize(N), c = linear(skin_colour);
    n.y += age * face * smoothstep(0.42, 0.6, U.y) * 0.30 * sin(U.y * 38.0 + 2.0 * noise(U.xy * 3.0));  // forehead
    n = normalize(n);
    c *= 1.0 + 0.16 * (noise(U.xy * 5.0 + U.z) - 0.5) + 0.10 * (noise(U.xy * 21.0) - 0.5);
    float rosy = spot(vec2(ax - 0.68, U.y + 0.62), vec2(0.30, 0.26)) + 0.9 * spot(vec2(U.x, U.y + 0.66), vec2(0.2, 0.2));
    rosy += 0.4 * spot(vec2(U.x, U.y + 1.75), vec2(0.3, 0.2)) + 0.7 * smoothstep(1.22, 1.36, ax);
    c *= mix(vec3(1.0), vec3(1.06, 0.72, 0.68), clamp(rosy, 0.0, 1.0) * face * (0.35 + 0.65 * flush));
    float dots = smoothstep(0.72, 0.8, noise(U.xy * 34.0)) * spot(vec2(ax - 0.45, U.y + 0.5), vec2(0.5, 0.25));
    c *= 1.0 - 0.45 * freckles * dots * face;
    float socket = spot(vec2(ax - 0.5, U.y), vec2(0.36, 0.22)), lid = spot(vec2(ax - 0.5, U.y - 0.17), vec2(0.3, 0.12));
    c *= 1.0 - vec3(0.16, 0.22, 0.20) * socket - vec3(0.3, 0.42, 0.36) * lid * makeup;
    c *= 1.0 - 0.22 * age * spot(vec2(ax - 0.48, U.y + 0.24), vec2(0.26, 0.06)) * face;  // bags under the eyes
    vec3 red = mix(c * vec3(0.86, 0.48, 0.48), linear(lip_colour), lips * 0.75);
    float lip = smoothstep(0.15, 0.7, E.x);
    c = mix(c, red, lip * (0.35 + 0.6 * lips));
    float arch = 0.405 - 0.30 * pow(max(ax - 0.52, 0.0), 2.0) - 0.14 * pow(ax - 0.52, 2.0) - 0.02;
    float thick = 0.062 * brows * (1.0 - 0.55 * smoothstep(0.4, 0.98, ax));
    float brow = exp(-pow((U.y - arch) / thick, 2.0)) * smoothstep(0.14, 0.26, ax) * (1.0 - smoothstep(0.86, 1.0, ax));
    brow *= (0.65 + 0.6 * noise(vec2(U.x * 46.0 + U.y * 30.0, U.y * 14.0))) * face;
    c = mix(c, linear(hair_colour) * 0.6, clamp(brow * 1.15, 0.0, 0.92));
    float jaw = smoothstep(-0.02, 0.16, E.z) * (1.0 - smoothstep(0.05, 0.4, E.x));
    c = mix(c, linear(hair_colour) * 0.7, jaw * stubble * (0.35 + 0.3 * noise(U.xy * 40.0)));
    float hair = smoothstep(-0.05, 0.10, E.y - hairline + 0.10 * (noise(vec2(U.x * 16.0, U.y * 7.0)) - 0.5));
    c = mix(c, linear(hair_colour) * (0.35 + 0.5 * noise(vec2(atan(U.x, U.z + 1.2) * 40.0, U.y * 3.0))), hair * scalp);

    float shadow = lit(P, 0.012), d = dot(n, key_direction), wrap = clamp((d + 0.35) / 1.35, 0.0, 1.0);
    float under_chin = 1.0 - 0.45 * smoothstep(-1.8, -2.2, U.y) * smoothstep(0.4, -0.8, U.z) * smoothstep(-3.6, -2.6, U.y);
    vec3 direct = vec3(wrap * wrap, mix(wrap * wrap, max(d, 0.0), 0.5), mix(wrap * wrap, max(d, 0.0), 0.7));
    float soft = mix(shadow, 1.0, 0.12);
    direct *= mix(vec3(soft), vec3(1.0), vec3(0.10, 0.03, 0.02) * (1.0 - soft));
    vec3 light = c * (ambient(n) * under_chin * (1.0 - 0.35 * socket) + key_colour * direct);
    vec3 h = normalize(key_direction + vec3(0, 0, 1));
    float oily = 0.05 + 0.05 * spot(vec2(U.x, U.y + 0.1), vec2(0.25, 1.1)) + 0.22 * lip * lips;
    light += key_colour * soft * (pow(max(dot(n, h), 0.0), 22.0) * oily) + c * rim(n);
    pixel = developed(light * (1.0 - 0.55 * hair * scalp * smoothstep(0.3, -0.5, U.y)));
}
