// Hair and beard: Kajiya and Kay's light on a fibre, darker near the root and in the depth of the hair.
uniform vec3 colour;
uniform float shine;
in vec3 P;
in vec3 T;
in vec3 S;
out vec4 pixel;

void main() {
    vec3 t = normalize(T), h = normalize(key_direction + vec3(0, 0, 1));
    float along = dot(t, key_direction), across = sqrt(max(1.0 - along * along, 0.0));
    float th = dot(t, h), gloss = pow(sqrt(max(1.0 - th * th, 0.0)), 40.0);
    float shadow = lit(P, 0.018);
    vec3 c = linear(colour) * (0.35 + 1.1 * S.z) * (0.62 + 0.38 * smoothstep(0.0, 0.35, S.y));
    c *= 1.0 - 0.3 * abs(S.x) * abs(S.x);
    vec3 light = c * (ambient(vec3(0, 0.35, 0)) * 0.8 + key_colour * across * (0.15 + 0.85 * shadow));
    light += (linear(colour) * 0.6 + 0.10) * key_colour * gloss * shine * shadow * S.z;
    pixel = developed(light);
}
