// An eyeball: white, iris with a dark edge, pupil, the lid's shadow and the light's reflection. Looks along `gaze`.
uniform vec3 eye_colour, left_eye, right_eye, gaze;
in vec3 P;
in vec3 N;
in vec3 U;
in vec3 E;
out vec4 pixel;

void main() {
    vec3 centre = U.x > 0.0 ? right_eye : left_eye, d = normalize(P - centre);
    float a = acos(clamp(dot(d, gaze), -1.0, 1.0));
    float spoke = noise(vec2(atan(d.y - gaze.y, d.x - gaze.x) * 9.0, a * 6.0));
    vec3 white = vec3(0.72, 0.68, 0.66) * (1.0 - 0.25 * smoothstep(0.6, 1.3, a));
    vec3 iris = linear(eye_colour) * (0.7 + 0.9 * spoke) * (0.8 + 0.9 * smoothstep(0.22, 0.42, a));
    vec3 c = mix(mix(iris, iris * 0.25, smoothstep(0.40, 0.52, a)), white, smoothstep(0.50, 0.60, a));
    c = mix(vec3(0.004), c, smoothstep(0.19, 0.25, a));
    float lid = 1.0 - 0.6 * smoothstep(0.02, 0.15, U.y);
    vec3 light = c * (ambient(vec3(0, 0.2, 0)) + key_colour * 0.55 * (0.4 + 0.6 * lit(P, 0.03))) * lid;
    vec3 h = normalize(vec3(key_direction.xy * 0.55 + gaze.xy * 0.5, 1.0));
    light += smoothstep(0.984, 0.992, dot(d, h)) * 0.9 * key_colour;
    pixel = developed(light);
}
