// One colour with a highlight: lashes, teeth, tongue, frames and lenses of glasses (`opacity` below 1).
uniform vec3 colour;
uniform float gloss, opacity;
in vec3 P;
in vec3 N;
in vec3 U;
in vec3 E;
out vec4 pixel;

void main() {
    vec3 n = normalize(gl_FrontFacing ? N : -N), h = normalize(key_direction + vec3(0, 0, 1));
    float shadow = mix(lit(P, 0.02), 1.0, 0.3);
    vec3 light = linear(colour) * (ambient(n) + key_colour * max(dot(n, key_direction), 0.0) * shadow);
    float shine = pow(max(dot(n, h), 0.0), 40.0) * gloss;
    pixel = vec4(developed(light + key_colour * shine).rgb, min(opacity + shine, 1.0));
}
